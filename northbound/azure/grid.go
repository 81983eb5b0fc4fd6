package azure

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/mqtt"
)

const (
	gridWindow = 1000            // unconfirmed publications
	ahead      = 0.8             // of a token's remaining life: when the next is shown
	renewPause = 5 * time.Second // shortest time between two re-authentications
)

// grid is a session with an Event Grid namespace.
type grid struct {
	*mqtt.Session
	wg sync.WaitGroup
}

// gridLogin makes what logging in needs. until gives the end of the token that was shown last; nil without tokens.
func (c *Connector) gridLogin(ctx context.Context) (a mqtt.Address, o mqtt.Options, until func() time.Time, err error) {
	o = c.options()
	if a, err = c.address(ctx, c.deviceID(), c.cfg.Endpoint, "/mqtt"); err != nil {
		return a, o, nil, err
	}
	o.Version, o.ClientID, o.SessionExpiry, o.Window = mqtt.V5, c.deviceID(), time.Duration(c.cfg.SessionExpiry), gridWindow
	if o.Username = c.cfg.Name; o.Username == "" {
		o.Username = o.ClientID
	}
	if c.cfg.Auth == "x509" {
		return a, o, nil, nil
	}
	o.Method = map[string]string{"oauth": "OAUTH2-JWT", "jwt": "CUSTOM-JWT"}[c.cfg.Auth]
	var mu sync.Mutex
	var end time.Time
	o.Auth = func(ctx context.Context, _ []byte) ([]byte, error) {
		token, expires, err := c.bearer.Token(ctx)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		end = expires
		mu.Unlock()
		return []byte(token), nil
	}
	return a, o, func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return end
	}, nil
}

func (c *Connector) dialGrid(ctx context.Context, down northbound.Downlink) (northbound.Session, error) {
	address, o, until, err := c.gridLogin(ctx)
	if err != nil {
		return nil, err
	}
	o.Receive = func(ctx context.Context, p msg.Publication) error {
		_, err := down.Deliver(ctx, p)
		return err
	}
	conn, err := address.Dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	s, err := mqtt.Start(ctx, conn, o)
	if c.cfg.Auth != "x509" {
		err = c.bearer.Judge(err)
	}
	if err != nil {
		return nil, northbound.Explain(address.Explain(err), c.hints())
	}
	if err := mqtt.Forget(ctx, s, c.env.State, down.Topics()); err != nil {
		c.env.Log.Warn("subscriptions of an earlier configuration may remain", "error", err)
	}
	if err := c.subscribe(ctx, s, down.Topics()); err != nil {
		s.Close()
		return nil, northbound.Explain(address.Explain(err), c.hints())
	}
	g := &grid{Session: s}
	if until != nil {
		g.wg.Go(func() { c.renew(s, until) })
	}
	return g, nil
}

// renew shows a new token before the one that was shown ends, as long as the session lives. While the issuer gives none, the old one counts to
// its end; the source of tokens sees to it that the issuer is not asked each time.
func (c *Connector) renew(s *mqtt.Session, until func() time.Time) {
	end := until()
	wait := time.Duration(ahead * float64(end.Sub(c.env.Now())))
	for !end.IsZero() {
		select {
		case <-time.After(max(wait, c.leastRenewal)):
		case <-s.Context().Done():
			return
		}
		ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
		_, expires, err := c.bearer.Token(ctx)
		if wait = 0; err == nil && expires != end {
			err = s.Reauthenticate(ctx)
			end = until()
			wait = time.Duration(ahead * float64(end.Sub(c.env.Now())))
		}
		cancel()
		if err != nil && s.Context().Err() == nil {
			c.env.Log.Debug("re-authentication", "error", err)
		}
	}
}

// Close is northbound.Session's.
func (g *grid) Close() error {
	err := g.Session.Close()
	g.wg.Wait()
	return err
}

// Send is northbound.Session's.
func (g *grid) Send(ctx context.Context, batch []msg.Publication, done func(int, error)) error {
	for next := 0; next < len(batch); {
		from, to := next, next
		for to < len(batch) && gridFits(&batch[to]) == nil {
			to++
		}
		if err := g.Session.Send(ctx, batch[from:to], func(i int, err error) { done(from+i, err) }); err != nil {
			return err
		}
		if to < len(batch) {
			done(to, msg.Permanent(gridFits(&batch[to])))
			to++
		}
		next = to
	}
	return nil
}

// gridFits holds a publication against what the namespace enforces by closing.
func gridFits(p *msg.Publication) error {
	switch {
	case len(p.Topic) > gridTopic:
		return fmt.Errorf("topic of %d octets: Event Grid takes %d", len(p.Topic), gridTopic)
	case strings.Count(p.Topic, "/") >= gridLevels:
		return fmt.Errorf("topic of %d levels: Event Grid takes %d", strings.Count(p.Topic, "/")+1, gridLevels)
	case len(p.Payload) > gridPacket-1024:
		return errors.New("payload: Event Grid takes packets of 512 KiB")
	}
	return nil
}
