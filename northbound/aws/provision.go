package aws

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

const csrTopic = "$aws/certificates/create-from-csr/json"

// Enroll is northbound.Enroller's: fleet provisioning by claim. The claim certificate logs in, the request is certified, and the template
// makes the thing and activates the certificate. The key does not leave its chip.
func (c *Connector) Enroll(ctx context.Context, csr []byte) (northbound.Enrolment, error) {
	e := northbound.Enrolment{Key: c.cfg.Key}
	if c.cfg.ClaimKey == "" || c.cfg.Template == "" || c.cfg.Key == "" {
		return e, errors.New("enrolment needs key, claim_key and template")
	}
	config, err := c.tls()
	if err != nil {
		return e, err
	}
	claim, err := c.env.Keys.Certificate(ctx, c.cfg.ClaimKey)
	if err != nil {
		return e, fmt.Errorf("claim_key %s: %w", c.cfg.ClaimKey, err)
	}
	address := mqtt.Address{URL: c.url("8883"), TLS: config, Net: c.env.Dial}
	config.Certificates = []tls.Certificate{*claim}
	if address.URL.Port() != "8883" {
		config.NextProtos = []string{"x-amzn-mqtt-ca"}
	}
	answers := make(chan msg.Publication, 4)
	conn, err := address.Dial(ctx, nil)
	if err != nil {
		return e, northbound.Explain(err, hints())
	}
	s, err := mqtt.Start(ctx, conn, mqtt.Options{
		Version: mqtt.V5, ClientID: c.clientID(), MaxQoS: 1, Now: c.env.Now,
		Receive: func(_ context.Context, p msg.Publication) error {
			select {
			case answers <- p:
			default:
			}
			return nil
		},
	})
	if err != nil {
		return e, northbound.Explain(address.Explain(err), hints())
	}
	defer s.Close()

	var certified struct {
		Token string `json:"certificateOwnershipToken"`
		PEM   string `json:"certificatePem"`
	}
	if err := exchange(ctx, s, answers, csrTopic, map[string]string{"certificateSigningRequest": string(csr)}, &certified); err != nil {
		return e, fmt.Errorf("certificate: %w", err)
	}
	var registered struct {
		Thing string `json:"thingName"`
	}
	body := map[string]any{"certificateOwnershipToken": certified.Token, "parameters": c.cfg.Parameters}
	if err := exchange(ctx, s, answers, "$aws/provisioning-templates/"+c.cfg.Template+"/provision/json", body, &registered); err != nil {
		return e, fmt.Errorf("template %s: %w", c.cfg.Template, err)
	}
	e.Certificate, e.Note = []byte(certified.PEM), "thing "+registered.Thing
	return e, nil
}

// exchange publishes a request and reads its answer into out.
func exchange(ctx context.Context, s *mqtt.Session, answers <-chan msg.Publication, topic string, request, out any) error {
	if err := s.Subscribe(ctx, topic+"/accepted", topic+"/rejected"); err != nil {
		return err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if err := s.Publish(ctx, msg.Publication{Topic: topic, QoS: 1, Payload: body}); err != nil {
		return err
	}
	for {
		select {
		case p := <-answers:
			verdict, ok := strings.CutPrefix(p.Topic, topic+"/")
			switch {
			case !ok:
			case verdict == "accepted":
				return json.Unmarshal(p.Payload, out)
			default:
				var no struct {
					Code    string `json:"errorCode"`
					Message string `json:"errorMessage"`
				}
				json.Unmarshal(p.Payload, &no) // what cannot be read is refused without words
				return msg.Permanent(fmt.Errorf("refused: %s: %q", no.Code, no.Message))
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.Context().Done():
			return context.Cause(s.Context())
		}
	}
}
