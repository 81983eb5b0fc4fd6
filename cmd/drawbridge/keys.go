package main

import (
	"context"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/status"
)

func (a *app) keysVerb() *cobra.Command {
	c := &cobra.Command{
		Use:   "keys",
		Short: "List, make and certify the keys that the configuration names",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(c, args[0])
			}
			return a.keysList(c.Context(), false)
		},
	}
	var asJSON bool
	list := &cobra.Command{
		Use:   "list",
		Short: "Show where each key lives, whether it can leave, and its certificate",
		RunE:  func(c *cobra.Command, _ []string) error { return a.keysList(c.Context(), asJSON) },
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	c.AddCommand(list, a.keysNew(), a.keysCSR(), a.keysImport(), a.keysSeal(), a.keysAttest(), a.keysRotate(), a.keysNeedsRenewal())
	return c
}

func (a *app) keysNew() *cobra.Command {
	var algorithm string
	c := &cobra.Command{
		Use:   "new NAME",
		Short: "Make the key inside its chip and print its URI; a key that exists is left as it is",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withKeys(c.Context(), args[0], func(ctx context.Context, ring *keyring.Ring) error {
				s, created, err := ring.New(ctx, args[0], hwcrypto.Algorithm(algorithm))
				if err != nil {
					return err
				}
				if !created {
					fmt.Fprintf(a.err, "drawbridge: key %s exists already and was left as it is\n", args[0])
				}
				_, err = fmt.Fprintln(a.out, s.URI)
				return err
			})
		},
	}
	c.Flags().StringVar(&algorithm, "algorithm", string(hwcrypto.ECDSAP256), "ecdsa-p256, ecdsa-p384, rsa-2048 or hmac-sha256")
	return c
}

func (a *app) keysCSR() *cobra.Command {
	var cn string
	var sans []string
	c := &cobra.Command{
		Use:   "csr NAME",
		Short: "Print a certificate request (PKCS#10, PEM) that the key has signed in its chip",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if cn == "" {
				cfg, _, err := outline(a.config(), kinds())
				if err != nil {
					return err
				}
				cn = cfg.Gateway.ID
			}
			return a.withKeys(c.Context(), args[0], func(ctx context.Context, ring *keyring.Ring) error {
				pem, err := ring.CSR(ctx, args[0], pkix.Name{CommonName: cn}, sans)
				if err != nil {
					return err
				}
				_, err = a.out.Write(pem)
				return err
			})
		},
	}
	c.Flags().StringVar(&cn, "cn", "", "the subject's common name (default: gateway.id)")
	c.Flags().StringSliceVar(&sans, "san", nil, "a DNS name, IP address, URI or mail address; may be repeated")
	return c
}

func (a *app) keysImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import NAME FILE",
		Short: "Take a shared secret (never a private key) into the chip; the file may hold hex: or base64:",
		Long: `A key that a device names by psk = "key:NAME" takes the device's pre-shared key, in the form in which the chip computes with it in handshakes.
Every other key takes the secret of an HMAC as it is.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, _, err := outline(a.config(), kinds())
			if err != nil {
				return err
			}
			return a.withKeys(c.Context(), args[0], func(ctx context.Context, ring *keyring.Ring) error {
				raw, err := a.readFile(args[1])
				if err != nil {
					return err
				}
				defer clear(raw)
				secret, err := hwcrypto.DecodeSecret(raw)
				if err == nil && pskKeys(cfg)[args[0]] {
					secret, err = hwcrypto.PSKPremaster(secret)
					defer clear(secret)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", args[1], err)
				}
				s, err := ring.Import(ctx, args[0], secret)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.out, s.URI)
				return err
			})
		},
	}
}

func (a *app) keysSeal() *cobra.Command {
	var with string
	c := &cobra.Command{
		Use:   "seal FILE",
		Short: "Seal a secret by the chip, for sealed:/path in the configuration; - is standard input",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if with == "" {
				cfg, _, err := outline(a.config(), kinds())
				if err != nil {
					return err
				}
				if with = sealingKey(cfg); with == "" {
					return usage("seal: %s has no key whose chip could seal", a.config())
				}
			}
			return a.withKeys(c.Context(), with, func(ctx context.Context, ring *keyring.Ring) error {
				secret, err := a.readFile(args[0])
				if err != nil {
					return err
				}
				defer clear(secret)
				sealed, err := ring.Seal(ctx, with, hwcrypto.TrimNewline(secret))
				if err != nil {
					return err
				}
				_, err = a.out.Write(sealed)
				return err
			})
		},
	}
	c.Flags().StringVar(&with, "key", "", "the `name` of the key whose chip seals (default: the first of the file that lives in a chip)")
	return c
}

// pskKeys gives the keys that hold a device's pre-shared key.
func pskKeys(cfg *config.Config) map[string]bool {
	names := map[string]bool{}
	for _, d := range cfg.Devices {
		if name, ok := d.PSK.Key(); ok {
			names[name] = true
		}
	}
	return names
}

// sealingKey names the key that seals where nobody says which: the first in a chip, else the first; empty where there is none.
func sealingKey(cfg *config.Config) (name string) {
	inChip := func(name string) bool { return !strings.HasPrefix(cfg.Keys[name].URI, "file:") }
	psk := pskKeys(cfg)
	for n, k := range cfg.Keys {
		switch {
		case psk[n]:
		case name == "", inChip(n) && !inChip(name), inChip(n) == inChip(name) && k.Pos.Line < cfg.Keys[name].Pos.Line:
			name = n
		}
	}
	return name
}

// pskWhere says where the devices' pre-shared keys live.
func pskWhere(cfg *config.Config) (where status.PSKs) {
	for _, d := range cfg.Devices {
		switch scheme, _, _ := strings.Cut(string(d.PSK), ":"); scheme {
		case "":
		case "key":
			where.Chip++
		case "sealed":
			where.Sealed++
		default:
			where.Plain++
		}
	}
	return where
}

func (a *app) keysAttest() *cobra.Command {
	var nonce, credential string
	c := &cobra.Command{
		Use:   "attest NAME",
		Short: "Print the chip's own statement on where the key lives, as JSON: TPM2_Certify with an attestation key, or PKCS#11 attributes",
		Long: `That the attestation key lives in the TPM of the endorsement certificate, a verifier makes sure of by a challenge: it makes a credential for
ek_public and for the name of ak_public (tpm2_makecredential), and --credential prints the secret in it, in hexadecimal, which no other
TPM can find out.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			fresh, err := hex.DecodeString(nonce)
			if err != nil {
				return usage("keys attest: --nonce: %q is not hexadecimal", nonce)
			}
			return a.withKeys(c.Context(), args[0], func(ctx context.Context, ring *keyring.Ring) error {
				if credential != "" {
					b, err := a.readFile(credential)
					if err != nil {
						return err
					}
					secret, err := ring.ActivateCredential(ctx, args[0], b)
					if err != nil {
						return err
					}
					_, err = fmt.Fprintf(a.out, "%x\n", secret)
					return err
				}
				statement, err := ring.Attest(ctx, args[0], fresh)
				if err != nil {
					return err
				}
				e := json.NewEncoder(a.out)
				e.SetIndent("", "  ")
				return e.Encode(statement)
			})
		},
	}
	c.Flags().StringVar(&nonce, "nonce", "", "what the verifier has chosen, in hexadecimal, so that an old statement does not pass")
	c.Flags().StringVar(&credential, "credential", "", "a `file` with a credential to activate instead; - is standard input")
	return c
}

func (a *app) keysRotate() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate NAME",
		Short: "Make a new key beside the old one in the chip, and change over once it is certified",
		Long: `With an EST server it is certified and taken over at once. Without one the certificate request of the new key is printed: have it signed, put the
certificate where the old one is, and say rotate again. Until then the old key serves; what is sealed stays readable.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, _, err := outline(a.config(), kinds())
			if err != nil {
				return err
			}
			return a.withKeys(c.Context(), args[0], func(ctx context.Context, ring *keyring.Ring) error {
				_, closed, err := aside(ctx, cfg, ring)
				if err != nil {
					return err
				}
				defer closed()
				r, err := ring.Rotate(ctx, args[0], keyring.Enrolment{Subject: pkix.Name{CommonName: cfg.Gateway.ID}})
				if err != nil {
					return err
				}
				if r.Done {
					return a.done(nil, "%s\n", ring.Status(ctx, args[0]).URI)
				}
				fmt.Fprintf(a.err, "drawbridge: hint: have the request signed, put the certificate into %s, and say `drawbridge keys rotate %s` again\n", cfg.Keys[args[0]].Cert, args[0])
				_, err = a.out.Write(r.CSR)
				return err
			})
		},
	}
}

func (a *app) keysNeedsRenewal() *cobra.Command {
	return &cobra.Command{
		Use:   "needs-renewal [NAME]",
		Short: "Tell by the exit status whether a certificate is due: 0 yes, 3 no",
		Long:  "A certificate is due when two thirds of its time have passed, or when there is none. Those that are due are printed, one a line.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withKeys(c.Context(), first(args), func(ctx context.Context, ring *keyring.Ring) error {
				names := args
				if len(names) == 0 {
					names = ring.Names()
				}
				due := false
				for _, name := range names {
					s := ring.Status(ctx, name)
					if s.Err != "" {
						return fmt.Errorf("key %s: %s", name, s.Err)
					}
					if s.Certificate == nil || !time.Now().Before(s.Certificate.RenewAt) {
						due = true
						fmt.Fprintln(a.out, name)
					}
				}
				if !due {
					return no()
				}
				return nil
			})
		},
	}
}

func (a *app) readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(a.in, 1<<20))
	}
	return os.ReadFile(name)
}

// withKeys opens the key ring for one command. name, where not empty, has to be a key of the configuration.
func (a *app) withKeys(ctx context.Context, name string, f func(context.Context, *keyring.Ring) error) error {
	cfg, _, err := outline(a.config(), kinds())
	if err != nil {
		return err
	}
	ring, err := openKeys(ctx, cfg, slog.New(slog.DiscardHandler), nil, time.Now)
	if err != nil {
		return err
	}
	defer ring.Close()
	if name != "" && !slices.Contains(ring.Names(), name) {
		f := &failure{code: exitUsage, err: fmt.Errorf("key %q: not in %s", name, a.config())}
		if names := ring.Names(); len(names) > 0 {
			f.hint = "there are: " + strings.Join(names, ", ")
		}
		return f
	}
	return f(ctx, ring)
}

func (a *app) keysList(ctx context.Context, asJSON bool) error {
	return a.withKeys(ctx, "", func(ctx context.Context, ring *keyring.Ring) error {
		keys := ring.List(ctx)
		if asJSON {
			e := json.NewEncoder(a.out)
			e.SetIndent("", "  ")
			return e.Encode(keys)
		}
		w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "KEY\tWHERE\tALGORITHM\tCAN LEAVE\tCERTIFICATE\tFINGERPRINT")
		broken := false
		for _, k := range keys {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.Name, keyWhere(k), k.Info.Algorithm, keyLeaves(k), keyCertificate(k), k.Info.Fingerprint)
			broken = broken || k.Err != ""
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, k := range keys {
			for _, weak := range k.Info.Weak {
				fmt.Fprintf(a.out, "%s: %s\n", k.Name, weak)
			}
		}
		if cfg, _, err := outline(a.config(), kinds()); err == nil {
			if said := pskWhere(cfg).String(); said != "" {
				fmt.Fprintln(a.out, said)
			}
		}
		if broken {
			return no()
		}
		return nil
	})
}

func keyWhere(k keyring.Status) string {
	if k.Err != "" {
		return "error: " + k.Err
	}
	return k.Info.Where
}

func keyLeaves(k keyring.Status) string {
	switch {
	case k.Err != "":
		return "-"
	case k.Info.Extractable:
		return "yes"
	}
	return "no"
}

func keyCertificate(k keyring.Status) string {
	switch {
	case k.CertErr != "":
		return "error: " + k.CertErr
	case k.Certificate == nil:
		return "none"
	}
	return fmt.Sprintf("%s, %s left", k.Certificate.Subject, plural(k.Certificate.DaysLeft, "day"))
}
