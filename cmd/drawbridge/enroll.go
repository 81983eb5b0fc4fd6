package main

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/northbound"
)

func (a *app) enrollVerb() *cobra.Command {
	var sans []string
	c := &cobra.Command{
		Use:   "enroll [NAME]",
		Short: "Obtain a certificate for a key, from its EST server or its platform, or a first token by the device flow",
		Long: `NAME is that of a [key.NAME] with est = "...", whose key is made in its chip where there is none and certified by RFC 7030; or of a
[connector.NAME] whose platform certifies its key (AWS fleet provisioning) or says where the gateway belongs (Azure's Device Provisioning
Service, by certificate, symmetric key or TPM); or of a [token.NAME] with the device flow (RFC 8628), for which a
person is told where to go and what to type there.
A certificate that takes the place of another is first proven by a log-in at every connector that names its key; if one fails, the old one stays.
Without NAME, every key that has an EST server and no valid certificate is enrolled.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, _, err := outline(a.config(), kinds())
			if err != nil {
				return err
			}
			if len(args) == 1 && cfg.Tokens[args[0]] != nil && cfg.Keys[args[0]] == nil {
				return a.enrollToken(c.Context(), cfg, args[0])
			}
			if len(args) == 1 && cfg.Connectors[args[0]] != nil && cfg.Keys[args[0]] == nil {
				return a.enrollAtPlatform(c.Context(), cfg, args[0])
			}
			return a.withKeys(c.Context(), first(args), func(ctx context.Context, ring *keyring.Ring) error {
				_, closed, err := aside(ctx, cfg, ring)
				if err != nil {
					return err
				}
				defer closed()
				names := args
				if len(names) == 0 {
					names = withoutCertificate(ctx, cfg, ring)
				}
				for _, name := range names {
					s, err := ring.Enroll(ctx, name, keyring.Enrolment{Subject: pkix.Name{CommonName: cfg.Gateway.ID}, SANs: sans})
					if err != nil {
						return err
					}
					if s.Certificate != nil {
						fmt.Fprintf(a.out, "%s: %s, until %s\n", name, s.Certificate.Subject, s.Certificate.NotAfter.Format(time.DateOnly))
					}
				}
				return nil
			})
		},
	}
	c.Flags().StringSliceVar(&sans, "san", nil, "a DNS name, IP address, URI or mail address; may be repeated")
	return c
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// withoutCertificate names the keys that an EST server could certify and none has yet.
func withoutCertificate(ctx context.Context, cfg *config.Config, ring *keyring.Ring) (names []string) {
	for _, s := range ring.List(ctx) {
		if cfg.Keys[s.Name].EST != "" && (s.Certificate == nil || s.Certificate.NotAfter.Before(time.Now())) {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (a *app) enrollToken(ctx context.Context, cfg *config.Config, name string) error {
	ring, err := openKeys(ctx, cfg, slog.New(slog.DiscardHandler), nil, time.Now)
	if err != nil {
		return err
	}
	defer ring.Close()
	dir, err := stateDir(cfg, "tokens")
	if err != nil {
		return err
	}
	tokens, err := auth.NewTokens(ctx, cfg.Tokens, auth.TokenOptions{
		Keys: ring.For("tokens"), State: dir, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err != nil {
		return err
	}
	defer tokens.Close()
	err = tokens.Enroll(ctx, name, func(p auth.DevicePrompt) {
		fmt.Fprintf(a.out, "On any machine with a browser, go to %s and type %s before %s.\n", p.URL, p.Code, p.Expires.Format(time.TimeOnly))
		if p.Direct != "" {
			fmt.Fprintf(a.out, "The same in one: %s\n", p.Direct)
		}
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s: the token is there, sealed by the chip\n", name)
	return err
}

// enrollAtPlatform has a connector's key certified by its platform, for a request that is signed in the chip, or the gateway assigned to its place.
func (a *app) enrollAtPlatform(ctx context.Context, cfg *config.Config, name string) error {
	ring, err := openKeys(ctx, cfg, slog.New(slog.DiscardHandler), nil, time.Now)
	if err != nil {
		return err
	}
	defer ring.Close()
	g, closed, err := aside(ctx, cfg, ring)
	if err != nil {
		return err
	}
	defer closed()
	built, err := g.openConnector(cfg, cfg.Connectors[name])
	if err != nil {
		return err
	}
	if p, ok := built.Connector.(northbound.Provisioner); ok {
		note, err := p.Provision(ctx)
		if err == nil {
			_, err = fmt.Fprintf(a.out, "%s: %s\n", name, note)
		}
		return err
	}
	platform, ok := built.Connector.(northbound.Enroller)
	if !ok {
		return usage("enroll: connector %q is of a type whose platform certifies no keys", name)
	}
	key, _ := cfg.Connectors[name].Value("key").(string)
	if key == "" {
		return usage("enroll: connector %q names no key", name)
	}
	if cfg.Keys[key].Cert == "" {
		return usage("enroll: [key.%s] names no cert: there is no place for the certificate", key)
	}
	if _, _, err := ring.New(ctx, key, hwcrypto.ECDSAP256); err != nil {
		return err
	}
	request, err := ring.CSR(ctx, key, pkix.Name{CommonName: cfg.Gateway.ID}, nil)
	if err != nil {
		return err
	}
	got, err := platform.Enroll(ctx, request)
	if err != nil {
		return err
	}
	if err := ring.Accept(ctx, key, got.Certificate); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s: certified; %s\n", key, got.Note)
	return err
}

// proveCertificate connects by a new certificate of a key wherever the configuration uses that key towards a cloud, as doctor does, up to
// the log-in: what a cloud lets us publish is no matter of the certificate.
func (g *gateway) proveCertificate(ctx context.Context, cfg *config.Config, key string, c *tls.Certificate) error {
	trial := &gateway{parts: g.parts, now: g.now, tokens: g.tokens, bridge: g.bridge, keys: g.keys.With(key, c)}
	for _, name := range sortedNames(cfg.Connectors) {
		component := cfg.Connectors[name]
		if used, _ := component.Value("key").(string); used != key {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, subjectTimeout)
		var failed error
		trial.examineConnector(ctx, cfg, component, func(f finding) {
			if f.Result == "problem" && f.ID != "publish" && f.ID != "echo" && failed == nil {
				failed = fmt.Errorf("connector %s: %s: %s", name, f.ID, f.Note)
			}
		})
		cancel()
		if failed != nil {
			return failed
		}
	}
	return nil
}
