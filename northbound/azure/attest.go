package azure

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

const (
	answerMax  = 64 << 10
	answerTime = 30 * time.Second
)

// attestation is a registration by TPM, which the service takes over HTTPS alone.
type attestation struct {
	c      *Connector
	id     string
	keys   northbound.Activators
	client *http.Client
	body   []byte // of the registration: who the TPM is
	ek     string
	sas    string // empty until the session's key is there
}

// provisionTPM registers with the service, which first sends a key for the registration that only the TPM with the endorsement key can open, and
// with the assignment another one, for the device.
func (c *Connector) provisionTPM(ctx context.Context, id string) (assignment, error) {
	keys, ok := c.env.Keys.(northbound.Activators)
	if !ok {
		return assignment{}, msg.Permanent(errors.New("the key ring activates no keys"))
	}
	ek, srk, err := keys.Endorsement(ctx, c.cfg.Key)
	if err != nil {
		return assignment{}, err
	}
	address, err := c.address(ctx, id, c.cfg.Provisioning, "")
	if err != nil {
		return assignment{}, err
	}
	transport := &http.Transport{DialContext: c.env.Dial, TLSClientConfig: address.TLS}
	defer transport.CloseIdleConnections()
	a := &attestation{c: c, id: id, keys: keys, ek: base64.StdEncoding.EncodeToString(ek), client: &http.Client{
		Transport: transport, Timeout: answerTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it redirects") },
	}}
	a.body, err = json.Marshal(map[string]any{"registrationId": id, "tpm": map[string]string{
		"endorsementKey": a.ek, "storageRootKey": base64.StdEncoding.EncodeToString(srk),
	}})
	if err != nil {
		return assignment{}, err
	}
	if err := a.challenge(ctx); err != nil {
		return assignment{}, err
	}
	return a.register(ctx)
}

// ask sends one request to the registration.
func (a *attestation) ask(ctx context.Context, method, path string, body []byte) (status int, retry string, answer []byte, err error) {
	at := "https://" + a.c.cfg.Provisioning + "/" + url.PathEscape(a.c.cfg.IDScope) + "/registrations/" + url.PathEscape(a.id) + path + "?api-version=" + dpsVersion
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	if a.sas != "" {
		req.Header.Set("Authorization", a.sas)
	}
	res, err := a.client.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(res.Body, answerMax))
	return res.StatusCode, res.Header.Get("Retry-After"), answer, err
}

// challenge has the service say who may register: whoever can open the key that it sends.
func (a *attestation) challenge(ctx context.Context) error {
	status, _, body, err := a.ask(ctx, http.MethodPut, "/register", a.body)
	if err != nil {
		return err
	}
	var answer struct {
		Key     string `json:"authenticationKey"`
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Key == "" {
		err := fmt.Errorf("the service sends no challenge: status %d: %.200q", status, answer.Message)
		if status >= 500 || status == http.StatusTooManyRequests {
			return err
		}
		return tpmUnknown.Of(msg.Permanent(err), health.Values{"registration": strconv.Quote(a.id), "key": a.ek})
	}
	if err := a.activate(ctx, answer.Key); err != nil {
		return err
	}
	a.sas, _, err = a.c.signature(ctx, a.id, a.c.cfg.IDScope+"/registrations/"+a.id, "registration")
	return err
}

// activate takes a key that the service has sent.
func (a *attestation) activate(ctx context.Context, key string) error {
	credential, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return fmt.Errorf("a key that cannot be read: %w", err)
	}
	return a.keys.Activate(ctx, a.c.cfg.Key, credential)
}

// register asks until the service has decided.
func (a *attestation) register(ctx context.Context) (assignment, error) {
	method, path, body := http.MethodPut, "/register", a.body
	for {
		status, retry, answer, err := a.ask(ctx, method, path, body)
		if err != nil {
			return assignment{}, err
		}
		next, given, err := readRegistration(strconv.Itoa(status), answer)
		switch {
		case err != nil:
			return given, err
		case given.Hub != "":
			if given.key == "" {
				return given, errors.New("an assignment without a key for the device")
			}
			return given, a.activate(ctx, given.key)
		case next != "":
			method, path, body = http.MethodGet, "/operations/"+url.PathEscape(next), nil
		}
		select {
		case <-time.After(max(retryAfter(retry), a.c.leastPoll)):
		case <-ctx.Done():
			return assignment{}, context.Cause(ctx)
		}
	}
}
