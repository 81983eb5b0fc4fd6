package azure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

const (
	dpsVersion    = "2019-03-31"
	leastPoll     = 500 * time.Millisecond
	mostRetry     = time.Minute
	longestAssign = 5 * time.Minute
)

// assignment is what the Device Provisioning Service said.
type assignment struct {
	Hub    string `json:"hub"`
	Device string `json:"device"`

	key string // of the device, for the TPM to activate; empty but for TPM attestation
}

// registration gives the registration id of a device: its own id, but for the gateway's where that is configured.
func (c *Connector) registration(device string) string {
	if c.cfg.Registration != "" && device == c.deviceID() {
		return c.cfg.Registration
	}
	return device
}

// assignmentPath is where an assignment is kept in the state directory.
func (c *Connector) assignmentPath(registration string) string {
	return filepath.Join(c.env.State, "assignment-"+url.PathEscape(registration)+".json")
}

// provisioned gives the hub that a registration was assigned to. The service is asked once; after that the state directory knows.
func (c *Connector) provisioned(ctx context.Context, registration string) (assignment, error) {
	c.mu.Lock()
	a, ok := c.assigned[registration]
	c.mu.Unlock()
	if ok {
		return a, nil
	}
	path := c.assignmentPath(registration)
	if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &a) == nil && a.Hub != "" && a.Device != "" {
		c.assign(registration, a)
		return a, nil
	}
	return c.provisionAnew(ctx, registration)
}

// Provision is northbound.Provisioner's.
func (c *Connector) Provision(ctx context.Context) (note string, err error) {
	if c.cfg.Service != "iothub" || c.cfg.Endpoint != "" {
		return "", errors.New("the file names the endpoint: there is nothing to ask the provisioning service, which id_scope without endpoint would")
	}
	a, err := c.provisionAnew(ctx, c.registration(c.deviceID()))
	if err != nil {
		return "", err
	}
	return "device " + a.Device + " of " + a.Hub, nil
}

// provisionAnew asks the service and keeps its answer.
func (c *Connector) provisionAnew(ctx context.Context, registration string) (assignment, error) {
	ctx, cancel := context.WithTimeout(ctx, longestAssign)
	defer cancel()
	provision := c.provision
	if c.cfg.Auth == "tpm" {
		provision = c.provisionTPM
	}
	a, err := provision(ctx, registration)
	if err != nil {
		return a, fmt.Errorf("provisioning: %w", northbound.Explain(err, hubHints()))
	}
	path := c.assignmentPath(registration)
	if data, err := json.Marshal(a); err == nil {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			c.env.Log.Warn("the assignment cannot be kept: the provisioning service will be asked again", "error", err)
		}
	}
	c.assign(registration, a)
	c.env.Log.Info("assigned", "hub", a.Hub, "device", a.Device)
	return a, nil
}

func (c *Connector) assign(registration string, a assignment) {
	c.mu.Lock()
	c.assigned[registration] = a
	c.mu.Unlock()
}

// forgetAssignment lets the service be asked again: a hub that refuses may not be the device's any more.
func (c *Connector) forgetAssignment(registration string) {
	if c.cfg.Endpoint != "" {
		return
	}
	c.mu.Lock()
	delete(c.assigned, registration)
	c.mu.Unlock()
	os.Remove(c.assignmentPath(registration))
}

// provision registers with the service over MQTT and waits for the assignment.
func (c *Connector) provision(ctx context.Context, id string) (assignment, error) {
	address, err := c.address(ctx, id, c.cfg.Provisioning, "/$iothub/websocket")
	if err != nil {
		return assignment{}, err
	}
	o := c.options()
	o.Version, o.ClientID = mqtt.V311, id
	o.Username = c.cfg.IDScope + "/registrations/" + id + "/api-version=" + dpsVersion
	if c.cfg.Auth == "sas" {
		token, _, err := c.signature(ctx, id, c.cfg.IDScope+"/registrations/"+id, "registration")
		if err != nil {
			return assignment{}, err
		}
		o.Password = []byte(token)
	}
	answers := make(chan msg.Publication, 16)
	o.Receive = func(_ context.Context, p msg.Publication) error {
		select {
		case answers <- p:
		default:
		}
		return nil
	}
	conn, err := address.Dial(ctx, nil)
	if err != nil {
		return assignment{}, err
	}
	s, err := mqtt.Start(ctx, conn, o)
	if err != nil {
		return assignment{}, address.Explain(err)
	}
	defer s.Close()
	if err := s.Subscribe(ctx, "$dps/registrations/res/#"); err != nil {
		return assignment{}, err
	}
	body, err := json.Marshal(map[string]string{"registrationId": id})
	if err != nil {
		return assignment{}, err
	}
	return c.register(ctx, s, body, answers)
}

// register asks until the service has decided.
func (c *Connector) register(ctx context.Context, s *mqtt.Session, body []byte, answers <-chan msg.Publication) (assignment, error) {
	topic := "$dps/registrations/PUT/iotdps-register/?$rid="
	for rid := 1; ; rid++ {
		if err := s.Publish(ctx, msg.Publication{Topic: topic + strconv.Itoa(rid), QoS: 1, Payload: body}); err != nil {
			return assignment{}, err
		}
		var in inbound
		var p msg.Publication
		for in.rid != strconv.Itoa(rid) {
			select {
			case p = <-answers:
				in = parseTopic(p.Topic)
			case <-ctx.Done():
				return assignment{}, context.Cause(ctx)
			case <-s.Context().Done():
				return assignment{}, context.Cause(s.Context())
			}
		}
		next, a, err := readRegistration(in.status, p.Payload)
		if err != nil || a.Hub != "" {
			return a, err
		}
		if next != "" {
			topic, body = "$dps/registrations/GET/iotdps-get-operationstatus/?operationId="+escape(next)+"&$rid=", nil
		}
		select {
		case <-time.After(max(retryAfter(in.bag["retry-after"]), c.leastPoll)):
		case <-ctx.Done():
			return assignment{}, context.Cause(ctx)
		}
	}
}

func retryAfter(s string) time.Duration {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		n = 3
	}
	return min(time.Duration(n)*time.Second, mostRetry)
}

// readRegistration reads an answer: the operation to ask after, the assignment, or why there is none. All empty: the service is busy.
func readRegistration(status string, body []byte) (operation string, a assignment, err error) {
	var answer struct {
		Operation string `json:"operationId"`
		Status    string `json:"status"`
		State     struct {
			Hub     string `json:"assignedHub"`
			Device  string `json:"deviceId"`
			Code    int    `json:"errorCode"`
			Message string `json:"errorMessage"`
			TPM     struct {
				Key string `json:"authenticationKey"`
			} `json:"tpm"`
		} `json:"registrationState"`
		Code    int    `json:"errorCode"`
		Message string `json:"message"`
	}
	unreadable := json.Unmarshal(body, &answer)
	switch {
	case status == "429" || len(status) == 3 && status[0] == '5':
		return "", a, nil
	case len(status) != 3 || status[0] != '2':
		return "", a, msg.Permanent(&refusal{"status " + status, answer.Code, answer.Message})
	case unreadable != nil:
		return "", a, fmt.Errorf("an answer that cannot be read: %w", unreadable)
	}
	switch answer.Status {
	case "assigned":
		if answer.State.Hub == "" || answer.State.Device == "" {
			return "", a, errors.New("an assignment without hub")
		}
		return "", assignment{answer.State.Hub, answer.State.Device, answer.State.TPM.Key}, nil
	case "assigning", "unassigned":
		return answer.Operation, a, nil
	case "failed", "disabled":
		return "", a, msg.Permanent(&refusal{answer.Status, answer.State.Code, answer.State.Message})
	}
	return "", a, fmt.Errorf("status %q is not known", answer.Status)
}
