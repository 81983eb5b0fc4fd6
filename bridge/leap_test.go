package bridge

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/drawbridge/drawbridge/bridge/spool"
	"github.com/drawbridge/drawbridge/internal/msg"
)

func TestACommandInAMailboxIsNoOlderWhenTheClockIsSet(t *testing.T) {
	commanded(t, func(t *testing.T, r *rig, c *cloud) {
		if _, err := c.down.Deliver(t.Context(), msg.Publication{Topic: "cmd/gw/bed-1/setpoint", Payload: []byte("1")}); err != nil {
			t.Fatal(err)
		}
		r.clock.set(240 * time.Hour)
		time.Sleep(9 * time.Minute)
		if len(c.all()) != 0 {
			t.Errorf("it ended early: %+v", c.all())
		}
		time.Sleep(time.Minute + 2*time.Second)
		synctest.Wait()
		if len(c.all()) != 1 || c.all()[0].Properties["code"] != "expired" {
			t.Errorf("got %+v", c.all())
		}
	})
}

func TestAPublicationHasTheTimeThatTheSetClockSays(t *testing.T) {
	taken := time.Unix(1000, 0)
	d := decoder{correct: func(at time.Time) time.Time { return at.Add(time.Hour) }}
	e := spool.Entry{Time: taken, Expires: taken.Add(time.Minute), Data: appendRecord(nil, &msg.Publication{Topic: "t"}, true)}
	p, err := d.publication(&e)
	if err != nil || !p.Time.Equal(taken.Add(time.Hour)) || !p.Expires.Equal(p.Time.Add(time.Minute)) || p.Properties[propertyTime] != "1970-01-01T01:16:40.000Z" {
		t.Errorf("%+v, %v", p, err)
	}
}
