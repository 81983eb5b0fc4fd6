// Package config reads the one file that users edit.
//
// Reading is strict: an unknown key, a wrong type, a reference to something that is not there, two routes that compete, a secret that
// others can read: each is an error with file, line and column, and all of them are reported at once. A file that has been accepted
// is immutable.
package config

import "time"

// Config is the whole file. Maps are keyed by the name in the table's header. The field Pos of an entry says where it stands.
type Config struct {
	Path       string                // absolute path of the file; relative paths in it are relative to its directory
	Gateway    Gateway               `toml:"gateway"`
	Log        Log                   `toml:"log"`
	Status     Status                `toml:"status"`
	Spool      Spool                 `toml:"spool"`
	Keys       map[string]*Key       `toml:"key"`
	Listeners  map[string]*Component `toml:"listener"`
	Issuers    map[string]*Issuer    `toml:"issuer"`
	Ask        *Authenticator        `toml:"authenticator"` // nil: none
	Devices    map[string]*Device    `toml:"device"`
	Groups     map[string]*Group     `toml:"group"`
	Allow      []*Allow              `toml:"allow"`
	Uplinks    []*Uplink             `toml:"uplink"`
	Downlinks  []*Downlink           `toml:"downlink"`
	Connectors map[string]*Component `toml:"connector"`
	Tokens     map[string]*Token     `toml:"token"`

	named   string        // Path as the user wrote it, for messages
	entries map[any]*node // where each entry stands
}

// Pos is a place in the file; lines and columns count from 1.
type Pos struct{ Line, Col int }

// Duration is a length of time written like "30s", "10m", "168h".
type Duration time.Duration

// Size is a number of octets written like "256MiB", "1GiB", "64KiB", "512".
type Size int64

// Path is a file's path; after reading it is absolute.
type Path string

// SecretRef names a secret: "file:/path", "credential:NAME" or "sealed:/path" (absolute after reading), or, a device's psk alone, "key:NAME" for one
// that a chip holds. It is never the secret itself.
type SecretRef string

// Gateway is [gateway].
type Gateway struct {
	ID    string `toml:"id"`    // {gateway} in topics
	State Path   `toml:"state"` // spool, certificates, sessions, mailboxes; default /var/lib/drawbridge
}

// Log is [log].
type Log struct {
	Level  string `toml:"level"`  // "debug", "info" (default), "warn", "error"
	Format string `toml:"format"` // "text" (default), "json"
}

// Status is [status].
type Status struct {
	Listen string `toml:"listen"` // default "127.0.0.1:8480"; "" turns it off
	Socket Path   `toml:"socket"` // default /run/drawbridge/drawbridge.sock

	// What follows is for an address that others can reach: it is served over TLS alone, to people who have logged in.
	Key          string    `toml:"key"`           // [key.NAME] whose certificate browsers see
	Password     SecretRef `toml:"password"`      // the operator's, for when the issuer is away; empty: none
	Issuer       string    `toml:"issuer"`        // [issuer.NAME] whose people may log in; empty: none
	ClientID     string    `toml:"client_id"`     // of this gateway at the issuer
	ClientSecret SecretRef `toml:"client_secret"` // empty: a public client
	RolesClaim   string    `toml:"roles_claim"`   // where the issuer says "viewer" or "operator"; default "roles"
}

// Spool is [spool].
type Spool struct {
	MaxSize Size     `toml:"max_size"` // default 1GiB
	MaxAge  Duration `toml:"max_age"`  // default 168h
	Full    string   `toml:"full"`     // "refuse" (default), "drop-oldest"
}

// Key is [key.NAME].
type Key struct {
	Pos    Pos    `toml:"-"`
	URI    string `toml:"uri"`    // pkcs11:, tpm: or file:
	Cert   Path   `toml:"cert"`   // PEM chain; empty: none yet
	Module Path   `toml:"module"` // PKCS#11 module; empty: found by p11-kit's rules

	EST         string    `toml:"est"`          // URL of an EST server (RFC 7030) that certifies the key and renews; empty: a person does
	ESTCA       Path      `toml:"est_ca"`       // who may answer there; empty: the system's roots
	ESTUser     string    `toml:"est_user"`     // HTTP Basic for the first certificate; empty: none
	ESTPassword SecretRef `toml:"est_password"` // likewise
}

// Component is [listener.NAME] or [connector.NAME]: its type and what the type's own struct holds.
type Component struct {
	Pos  Pos
	Name string
	Type string
	Own  any // pointer to the kind's config struct

	Budget Budget // of a connector

	keys  []string // the [key.NAME]s that it uses
	files [32]byte // SHA-256 over these keys and the content of the files that it names
}

// Budget is [connector.NAME.budget]: what a connector may put on the wire and take off it. Zero is no limit.
type Budget struct {
	Day    Size     `toml:"day"`    // octets, of a day in UTC
	Month  Size     `toml:"month"`  // octets, of a month in UTC
	Linger Duration `toml:"linger"` // how long messages that are not of high priority wait for company, to share packets
}

// Issuer is [issuer.NAME].
type Issuer struct {
	Pos         Pos    `toml:"-"`
	URL         string `toml:"url"`
	Audience    string `toml:"audience"`
	DeviceClaim string `toml:"device_claim"` // the claim that names the device; default "sub"
	GroupsClaim string `toml:"groups_claim"` // the claim that lists its groups; default "groups"
	CA          Path   `toml:"ca"`
}

// Authenticator is [authenticator]: who is asked where a listener's auth has "http".
type Authenticator struct {
	Pos     Pos      `toml:"-"`
	URL     string   `toml:"url"`     // https
	Key     string   `toml:"key"`     // [key.NAME] with which the gateway shows who asks; empty: none
	CA      Path     `toml:"ca"`      // system roots where empty
	Timeout Duration `toml:"timeout"` // default 5s
	Cache   Duration `toml:"cache"`   // how long a yes is remembered; default 1m
}

// Device is [device.NAME].
type Device struct {
	Pos         Pos       `toml:"-"`
	Groups      []string  `toml:"groups"`
	PSK         SecretRef `toml:"psk"`
	PSKIdentity string    `toml:"psk_identity"` // default: the device's name
	Password    SecretRef `toml:"password"`     // MQTT user name = the device's name
	Cert        string    `toml:"cert"`         // SAN, CN, or "sha256:HEX" of its certificate; default: its name as SAN or CN
	Sleepy      bool      `toml:"sleepy"`
}

// Group is [group.NAME]. A group without fields may still be named by devices.
type Group struct {
	Pos Pos    `toml:"-"`
	SAN string `toml:"san"` // pattern such as "*.meters.plant7.example"
	CN  string `toml:"cn"`
}

// Token is [token.NAME]: an OAuth 2.0 access token that connectors name and share.
type Token struct {
	Pos          Pos               `toml:"-"`
	Issuer       string            `toml:"issuer"`        // its endpoints are discovered; or
	TokenURL     string            `toml:"token_url"`     // the token endpoint itself
	Grant        string            `toml:"grant"`         // "client_credentials" (default), "jwt_bearer", "token_exchange", "refresh_token"
	ClientID     string            `toml:"client_id"`     //
	ClientAuth   string            `toml:"client_auth"`   // "private_key_jwt" (default), "tls", "client_secret_basic", "client_secret_post", "token", "none"
	ClientSecret SecretRef         `toml:"client_secret"` // for client_secret_*
	ClientToken  string            `toml:"client_token"`  // for "token": the [token.NAME] that is the client's assertion
	Key          string            `toml:"key"`           // [key.NAME] that signs assertions and proofs, or shows its certificate
	KeyID        string            `toml:"key_id"`        // kid of assertions; default the key's thumbprint (RFC 7638)
	X5T          bool              `toml:"x5t"`           // x5t#S256 instead of kid in assertions
	Audience     string            `toml:"audience"`      // aud of assertions; default the token endpoint
	Subject      string            `toml:"subject"`       // sub of jwt_bearer's assertion; default client_id
	SubjectToken string            `toml:"subject_token"` // the [token.NAME] that token_exchange exchanges
	Scopes       []string          `toml:"scopes"`
	Params       map[string]string `toml:"params"` // further parameters, as resource or audience
	DPoP         bool              `toml:"dpop"`   // bound to the key by RFC 9449
	CA           Path              `toml:"ca"`     // system roots where empty
}

// Allow is [[allow]].
type Allow struct {
	Pos        Pos      `toml:"-"`
	Devices    []string `toml:"devices"`
	Groups     []string `toml:"groups"`
	Connectors []string `toml:"connectors"`
	Op         string   `toml:"op"`
	Resources  []string `toml:"resources"`
}

// Uplink is [[uplink]].
type Uplink struct {
	Pos        Pos      `toml:"-"`
	Name       string   `toml:"name"`
	Resource   string   `toml:"resource"`
	Devices    []string `toml:"devices"` // only these; empty: all
	Groups     []string `toml:"groups"`  // only these; empty: all
	To         []string `toml:"to"`
	Topic      string   `toml:"topic"`
	Transform  string   `toml:"transform"`
	Ack        string   `toml:"ack"` // "disk" (default), "cloud"
	QoS        int      `toml:"qos"` // default 1
	Retain     bool     `toml:"retain"`
	TTL        Duration `toml:"ttl"`
	Priority   string   `toml:"priority"`   // "high", "normal" (default), "low"
	Properties bool     `toml:"properties"` // message id, device and time as user properties
	Sealing
}

// Sealing is how a route protects payloads from end to end.
type Sealing struct {
	Seal       string `toml:"seal"`        // [key.NAME] that signs or encrypts; empty: payloads go as they are
	SealAs     string `toml:"seal_as"`     // "jwe" (default) or "cose-encrypt0", for a secret; "jws" or "cose-sign1", for a key pair
	SealCipher string `toml:"seal_cipher"` // "A256GCM" (default), "ARIA-256-GCM", "LEA-256-GCM"
}

// Downlink is [[downlink]].
type Downlink struct {
	Pos       Pos      `toml:"-"`
	Name      string   `toml:"name"`
	From      string   `toml:"from"`
	Topic     string   `toml:"topic"`
	Method    string   `toml:"method"` // default "PUT"
	Resource  string   `toml:"resource"`
	Reply     string   `toml:"reply"`
	Transform string   `toml:"transform"`
	TTL       Duration `toml:"ttl"`       // default 10m
	Unseal    string   `toml:"unseal"`    // [key.NAME], a secret: commands are encrypted by it
	SignedBy  Path     `toml:"signed_by"` // PEM certificates: commands are signed by one of their owners
	Sealing            // of replies
}
