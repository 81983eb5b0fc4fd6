// Package onem2m connects to a oneM2M CSE as an application entity, by the HTTP, MQTT and CoAP bindings (TS-0009, TS-0010, TS-0008).
//
// The gateway registers one AE, or one for each of its devices, and keeps it registered: its expiry is renewed, and what a CSE has lost is
// made again. A publication's topic is the path of a container below the AE; containers that are missing are made once. The connector promises:
//   - a publication becomes one contentInstance: it is named after the publication, so that one which is sent again conflicts with itself;
//   - publications of one device become contentInstances one after the other, those of several devices at the same time;
//   - a conflict is no failure; what the CSE may do later is tried again; what it refuses for good is permanent, for that publication alone;
//   - what others put into the containers that routes wait for is delivered in the order of its creation, also what came while the gateway was
//     away. Notifications only say where to look: repeated, reordered and lost ones do no harm;
//   - with an AE for each device, one whose credential is missing or whose registration is refused keeps no other out;
//   - where the M2M-SP-ID is known, both certificates are held to the profile of TS-0003: ours names the AE-ID, the CSE's the CSE-ID;
//   - after Close no goroutine of the session is left.
//
// Content is a string: JSON and text as they are, anything else in base64, as contentInfo says. Topics that the file says become flexContainers
// instead, whose custom attributes are the members of a JSON object. It holds no queue and dials once.
// TLS with pre-shared keys over TCP and the remote provisioning of keys (MEF, MAF) are not spoken; keys derived from an
// enrolment key by others fit, see Config.EnrolmentKey.
package onem2m

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/northbound"
)

// Config is [connector.NAME] with type = "onem2m".
type Config struct {
	URL   string      `toml:"url"`
	CSE   string      `toml:"cse"`   // CSE-ID and name of the CSEBase: "/in-cse/cse-in"; without a name "-" stands for it (TS-0001 clause 7.2)
	Key   string      `toml:"key"`   // [key.NAME] with its certificate; empty: none is shown
	CA    config.Path `toml:"ca"`    // PEM; empty: the system's roots
	Token string      `toml:"token"` // [token.NAME]; empty: none is shown
	// TokenAs says how it is shown: "bearer" (HTTP only) or "tkns", as a token of TS-0003.
	TokenAs string           `toml:"token_as"`
	PSK     config.SecretRef `toml:"psk"`    // Kpsa; CoAP only
	PSKID   string           `toml:"psk_id"` // KpsaID: "NAME@FQDN"
	// EnrolmentKey is, instead of PSK, the [key.NAME] that holds Ke: Kpsa is derived from it in the chip.
	EnrolmentKey string `toml:"enrolment_key"`

	// SP is the M2M-SP-ID. With it certificates are held to TS-0003: ours names the AE-ID, the CSE's the CSE-ID.
	SP string `toml:"sp"`

	AE      string `toml:"ae"`    // resource name; empty: the gateway's id
	AEID    string `toml:"ae_id"` // originator of the registration; empty: "C" and the resource name
	AppID   string `toml:"app_id"`
	Release string `toml:"release"`       // rvi
	PerDev  bool   `toml:"ae_per_device"` // an AE for each device, named like it
	// The credential of each device's AE, with "{device}" for its name; empty: all share the gateway's.
	DeviceKey   string `toml:"device_key"`
	DevicePSK   string `toml:"device_psk"` // as psk
	DevicePSKID string `toml:"device_psk_id"`

	Groups   []string        `toml:"groups"` // device groups that become oneM2M groups of AEs
	Labels   []string        `toml:"labels"`
	Allow    []string        `toml:"allow"` // AE-IDs that may read and command; empty: as the CSE has it
	Lifetime config.Duration `toml:"lifetime"`

	MNI int             `toml:"mni"` // maxNrOfInstances of containers; 0: as the CSE has it
	MBS config.Size     `toml:"mbs"` // maxByteSize
	MIA config.Duration `toml:"mia"` // maxInstanceAge

	Flex     []*Flex `toml:"flex"`
	Response string  `toml:"response"` // to reports: "blocking", or "synch" and "asynch" for non-blocking requests

	Notify   string `toml:"notify"` // "poll", "http", "mqtt"; empty: "mqtt" over MQTT, else "poll"
	Listen   string `toml:"listen"` // notify = "http": where notifications are taken
	POA      string `toml:"poa"`    // notify = "http": the URL under which the CSE reaches that
	Parallel int    `toml:"parallel"`
}

const example = `[connector.m2m]
type = "onem2m"
url  = "https://cse.plant7.example"   # or "mqtts://BROKER", "coaps://CSE"
cse  = "/in-cse/cse-in"            # CSE-ID and name of the CSEBase
key  = "identity"                  # certificate for the security association
#ca       = ""                     # system roots where empty
#token    = ""                     # [token.NAME]
#token_as = "bearer"               # or "tkns"
#psk      = ""                     # instead of key, for coaps://
#psk_id   = ""                     # "NAME@FQDN"
#enrolment_key = ""                # instead of psk: [key.NAME] from which it is derived in the chip
#ae       = ""                     # the gateway's id where empty
#ae_id    = ""                     # originator; "C" and the name where empty
#app_id   = "Ndrawbridge"
#release  = "3"
#sp       = ""                     # M2M-SP-ID: certificates then name the AE-ID and the CSE-ID (TS-0003)
#ae_per_device = false             # an AE for each device; topics of downlinks then begin with the device's name
#device_key    = ""                # [key.NAME] of each AE, such as "ae-{device}"; the gateway's own where empty
#device_psk    = ""                # instead, for coaps://: such as "sealed:ae/{device}.psk"
#device_psk_id = ""                # "{device}@FQDN"
#groups   = []                     # device groups that become oneM2M groups; with ae_per_device
#labels   = []
#allow    = []                     # AE-IDs that may read and command
#lifetime = "168h"                 # of the registration; renewed in time
#mni      = 0                      # of containers made: instances,
#mbs      = "0"                    # octets
#mia      = "0s"                   # and age
#response = "blocking"             # or "synch", "asynch": reports are non-blocking requests
#notify   = ""                     # "poll", "http" or "mqtt"
#listen   = ""                     # for notify = "http"
#poa      = ""                     # the URL of that, as the CSE sees it
#parallel = 64                     # requests in flight

#[[connector.m2m.flex]]            # topics whose JSON objects become the attributes of a flexContainer
#topic = "dt/+/light"
#type  = "cod:color"               # its short name
#cnd   = "org.onem2m.common.moduleclass.colour"
`

// Kind is the entry of kinds.go.
func Kind() northbound.Kind {
	return northbound.Kind{
		Type:    "onem2m",
		About:   "a oneM2M CSE over HTTPS, MQTT or CoAP/DTLS, as one AE or one for each device",
		Example: example,
		Config: func() any {
			return &Config{
				TokenAs: "bearer", AppID: "Ndrawbridge", Release: "3", Lifetime: config.Duration(168 * time.Hour), Parallel: 64,
				Response: "blocking",
			}
		},
		Open: open,
	}
}

var (
	cseForm    = regexp.MustCompile(`^/[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)?$`)
	nameForm   = regexp.MustCompile(`^[A-Za-z0-9._~-]+$`)
	secretForm = regexp.MustCompile(`^(file|credential|sealed):.`)
	fqdnForm   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)
	idForm     = regexp.MustCompile(`^[CS][A-Za-z0-9._~-]*$`)
)

// Check is config.Checker's.
func (c *Config) Check(s *config.Scope) {
	u := s.URL("url", c.URL, "https", "mqtts", "coaps", "http", "mqtt")
	scheme := ""
	if u != nil {
		scheme = u.Scheme
		if (scheme == "http" || scheme == "mqtt") && !config.Loopback(net.JoinHostPort(u.Hostname(), "0")) {
			s.Errorf("url", "url: %s:// is only allowed on loopback, and %q is not", scheme, u.Hostname()).Hint = fmt.Sprintf("use %ss://", scheme)
		}
		if scheme != "https" && scheme != "http" && u.Path != "" && u.Path != "/" {
			s.Errorf("url", "url: %s:// has no path", scheme)
		}
	}
	if !cseForm.MatchString(c.CSE) {
		s.Errorf("cse", "cse: %q is not the CSE-ID and the name of a CSEBase", c.CSE).Hint = "such as \"/in-cse/cse-in\""
	}
	c.checkIdentity(s, scheme)
	c.checkDevices(s, scheme)
	c.checkFlex(s)
	s.OneOf("response", c.Response, "blocking", "synch", "asynch")
	c.checkNotify(s, scheme)
	if d := time.Duration(c.Lifetime); d < time.Minute {
		s.Errorf("lifetime", "lifetime: at least \"1m\"")
	}
	if c.MNI < 0 {
		s.Errorf("mni", "mni: it cannot be negative")
	}
	if d := time.Duration(c.MIA); d != 0 && d < time.Second {
		s.Errorf("mia", "mia: at least \"1s\"")
	}
	if c.Parallel < 1 || c.Parallel > 4096 {
		s.Errorf("parallel", "parallel: from 1 to 4096")
	}
}

func (c *Config) checkIdentity(s *config.Scope, scheme string) {
	if c.Key != "" {
		s.Key("key", c.Key)
	}
	if c.Token != "" {
		check := s.Token
		if c.TokenAs == "bearer" {
			check = s.TokenOverHTTP
		}
		check("token", c.Token)
		if s.OneOf("token_as", c.TokenAs, "bearer", "tkns") && c.TokenAs == "bearer" && scheme != "" && !strings.HasPrefix(scheme, "http") {
			s.Errorf("token_as", "token_as: only HTTP has a place for a bearer token").Hint = "set token_as = \"tkns\""
		}
	}
	if c.EnrolmentKey != "" {
		s.Key("enrolment_key", c.EnrolmentKey)
	}
	shared := c.PSK != "" || c.EnrolmentKey != ""
	switch {
	case !shared && c.PSKID == "":
		if scheme == "coaps" && c.Key == "" {
			s.Errorf("key", "coaps:// needs a key with a certificate, or psk and psk_id")
		}
	case scheme != "" && scheme != "coaps":
		s.Errorf("psk_id", "psk_id: only coaps:// knows pre-shared keys")
	case !shared || !validKeyID(c.PSKID):
		s.Errorf("psk_id", "psk_id: %q is not a KpsaID", c.PSKID).Hint = "NAME@FQDN, with psk or enrolment_key (TS-0003 clause 10.5)"
	case c.PSK != "" && c.EnrolmentKey != "":
		s.Errorf("psk", "psk: either it or enrolment_key")
	case c.Key != "":
		s.Errorf("key", "key: either a certificate or a pre-shared key")
	}
	if c.SP != "" && !fqdnForm.MatchString(c.SP) {
		s.Errorf("sp", "sp: %q is not an M2M-SP-ID", c.SP).Hint = "a domain name, without slashes"
	}
	if c.AE != "" && !nameForm.MatchString(c.AE) {
		s.Errorf("ae", "ae: %q is not the name of a resource", c.AE)
	}
	if c.AEID != "" && !idForm.MatchString(c.AEID) {
		s.Errorf("ae_id", "ae_id: %q is not an AE-ID", c.AEID).Hint = "it begins with C or S; \"C\" or \"S\" alone lets the CSE choose"
	}
	if c.PerDev && c.AEID != "" {
		s.Errorf("ae_id", "ae_id: with ae_per_device each device has its own")
	}
	if !strings.HasPrefix(c.AppID, "N") && !strings.HasPrefix(c.AppID, "R") {
		s.Errorf("app_id", "app_id: %q begins neither with N nor with R", c.AppID)
	}
	s.OneOf("release", c.Release, "2a", "3", "4", "5")
}

// checkDevices looks at what goes with an AE for each device.
func (c *Config) checkDevices(s *config.Scope, scheme string) {
	for key, value := range map[string]string{
		"device_key": c.DeviceKey, "device_psk": c.DevicePSK, "device_psk_id": c.DevicePSKID, "groups": strings.Join(c.Groups, ","),
	} {
		if value != "" && !c.PerDev {
			s.Errorf(key, "%s: it goes with ae_per_device = true", key)
		}
		if value != "" && key != "groups" && !strings.Contains(value, device) {
			s.Errorf(key, "%s: %q is the same for each device", key, value).Hint = "write " + device + " where its name belongs"
		}
	}
	for _, g := range c.Groups {
		if !nameForm.MatchString(g) {
			s.Errorf("groups", "groups: %q cannot be the name of a resource", g)
		}
	}
	switch {
	case (c.DevicePSK == "") != (c.DevicePSKID == ""):
		s.Errorf("device_psk_id", "device_psk, device_psk_id: they go together")
	case c.DevicePSKID == "":
	case !secretForm.MatchString(c.DevicePSK):
		s.Errorf("device_psk", "device_psk: it does not name a secret").Hint = "such as \"sealed:ae/{device}.psk\""
	case c.DeviceKey != "":
		s.Errorf("device_key", "device_key: either a certificate or a pre-shared key")
	case scheme != "coaps":
		s.Errorf("device_psk_id", "device_psk_id: only coaps:// knows pre-shared keys")
	case !validKeyID(strings.ReplaceAll(c.DevicePSKID, device, "d")):
		s.Errorf("device_psk_id", "device_psk_id: %q makes no KpsaID", c.DevicePSKID).Hint = "such as \"{device}@plant7.example\""
	}
}

func (c *Config) checkNotify(s *config.Scope, scheme string) {
	if c.Notify != "" && !s.OneOf("notify", c.Notify, "poll", "http", "mqtt") {
		return
	}
	isMQTT := strings.HasPrefix(scheme, "mqtt")
	if c.Notify == "mqtt" && !isMQTT && scheme != "" {
		s.Errorf("notify", "notify: \"mqtt\" goes with mqtts://")
	}
	if c.Notify != "http" {
		if c.Listen != "" || c.POA != "" {
			s.Errorf("listen", "listen, poa: they go with notify = \"http\"")
		}
		return
	}
	if !s.Address("listen", c.Listen) {
		return
	}
	u, err := url.Parse(c.POA)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		s.Errorf("poa", "poa: %q is not the URL under which the CSE reaches listen", c.POA)
		return
	}
	if u.Scheme == "http" {
		s.Loopback("poa", c.Listen, "http://")
	} else if c.Key == "" {
		s.Errorf("key", "notify = \"http\" needs a key with a certificate")
	}
}

// requests are the most that may be in flight at once: those of reports, and a poll for each AE.
func (c *Config) requests() int {
	n := c.Parallel + 2
	if c.PerDev && c.notify() == "poll" {
		n += polledDevices
	}
	return n
}

// notify says how notifications reach the gateway.
func (c *Config) notify() string {
	switch {
	case c.Notify != "":
		return c.Notify
	case strings.HasPrefix(c.URL, "mqtt"):
		return "mqtt"
	}
	return "poll"
}
