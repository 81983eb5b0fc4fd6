package status

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// Client asks a running gateway over its local socket.
type Client struct {
	socket string
	http   http.Client
}

// NewClient makes a Client of the gateway whose socket is at path. It connects when it is asked something.
func NewClient(path string) *Client {
	return &Client{socket: path, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}}
}

// Unanswered is the error of a Client to whom no gateway answers.
type Unanswered struct {
	Socket string
	Cause  error
}

func (u *Unanswered) Error() string {
	return fmt.Sprintf("no gateway answers at %q: %v", u.Socket, u.Cause)
}

func (u *Unanswered) Unwrap() error { return u.Cause }

// Hint says what to do.
func (u *Unanswered) Hint() string {
	return "is it running? `systemctl status drawbridge` or `drawbridge run`; and does this user belong to its group?"
}

// Snapshot asks how the gateway is.
func (c *Client) Snapshot(ctx context.Context) (s Snapshot, err error) {
	return s, c.do(ctx, http.MethodGet, "/status.json", nil, &s)
}

// Reload asks the gateway to take its file over.
func (c *Client) Reload(ctx context.Context) (r Reloaded, err error) {
	return r, c.do(ctx, http.MethodPost, "/v1/reload", struct{}{}, &r)
}

// DeadLetters asks for up to limit dead letters, oldest first, of one connector where that is not empty.
func (c *Client) DeadLetters(ctx context.Context, connector string, limit int) (l []DeadLetter, err error) {
	q := url.Values{"connector": {connector}, "limit": {strconv.Itoa(limit)}}
	return l, c.do(ctx, http.MethodGet, "/v1/dead?"+q.Encode(), nil, &l)
}

// Replay queues dead letters again; no ids means all of the connector, or all where that is empty too.
func (c *Client) Replay(ctx context.Context, connector string, ids []string) (int, error) {
	return c.act(ctx, "/v1/dead/replay", chosen{connector, ids})
}

// Drop deletes dead letters; no ids means all of the connector, or all where that is empty too.
func (c *Client) Drop(ctx context.Context, connector string, ids []string) (int, error) {
	return c.act(ctx, "/v1/dead/drop", chosen{connector, ids})
}

// Forget gives up what waits for a connector that is gone, and tells how many messages and dead letters there were.
func (c *Client) Forget(ctx context.Context, connector string) (int, error) {
	return c.act(ctx, "/v1/connectors/forget", named{connector})
}

// Acknowledge takes note of what damage to the disk has taken, and tells how many messages that were.
func (c *Client) Acknowledge(ctx context.Context) (int, error) {
	return c.act(ctx, "/v1/spool/acknowledge", struct{}{})
}

func (c *Client) act(ctx context.Context, path string, in any) (int, error) {
	var n affected
	err := c.do(ctx, http.MethodPost, path, in, &n)
	return n.Count, err
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("status: request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://drawbridge"+path, body)
	if err != nil {
		return fmt.Errorf("status: request: %w", err)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		if u, ok := err.(*url.Error); ok {
			err = u.Err
		}
		return &Unanswered{c.socket, err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return &Unanswered{c.socket, err}
	}
	if resp.StatusCode != http.StatusOK {
		refused := &Refused{Code: resp.StatusCode}
		if json.Unmarshal(answer, refused) != nil || refused.Message == "" {
			refused.Message = "this gateway does not know how: " + resp.Status
		}
		return refused
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("status: answer of the gateway: %w", err)
	}
	return nil
}
