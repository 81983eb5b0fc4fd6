package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"
)

// A command for a device that sleeps waits on disk, through a kill too, and goes out first when the device is there.
func TestSleepyDeviceGetsItsCommandAfterAKill(t *testing.T) {
	s := newSite(t)
	s.extra = "[device.dozer]\ngroups = [\"thermostat\"]\npsk = \"file:th-1.psk\"\nsleepy = true\n"
	s.configure()
	s.certify()
	s.startCloud()
	s.startGateway()
	cloud := s.watch("cmd/+/+/setpoint/reply")
	s.follows("cloud")
	mustRun(t, "mosquitto_pub", s.atCloud("-q", "1", "-t", "cmd/gw/dozer/setpoint", "-m", "18")...)
	eventually(t, "the command to be in the mailbox", func() bool { return s.snapshot(t).Devices.Queued == 1 })
	s.gateway.kill()
	s.startGateway()
	ctx, cancel := context.WithCancel(t.Context())
	var device sync.WaitGroup
	defer device.Wait()
	defer cancel()
	device.Go(func() {
		live(ctx, &thermostat{name: "dozer", address: s.coap, psk: []byte("0123456789abcdef")}, time.Minute, func(saying) {})
	})
	cloud.expect("cmd/gw/dozer/setpoint/reply set to 18.0")
}

// What the gateway observes on a device goes the way of reports.
func TestObservedDeviceReportsToTheCloud(t *testing.T) {
	s := newSite(t)
	listen := vacant(t)
	s.extra = fmt.Sprintf("[listener.observing]\ntype = \"coap\"\nlisten = %q\nsecurity = [\"psk\"]\nkey = \"identity\"\nobserve = [\"/sensors/level\"]\n", listen)
	s.configure()
	s.certify()
	s.startCloud()
	s.startGateway()
	cloud := s.watch("dt/#")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := dialCoAP(ctx, listen, "th-1", []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	receive := func(what string, fits func(p []byte) bool) []byte {
		t.Helper()
		d.SetReadDeadline(time.Now().Add(30 * time.Second))
		for {
			n, err := d.Read(d.buf)
			if err != nil {
				t.Fatalf("%s has not come: %v", what, err)
			}
			if p := d.buf[:n]; n >= 4 && fits(p) {
				return p
			}
		}
	}
	// respond sends 2.05 with Observe and a payload.
	respond := func(typ byte, mid uint16, token []byte, seq byte, payload string) {
		b := append([]byte{0x40 | typ<<4 | byte(len(token)), 0x45}, binary.BigEndian.AppendUint16(nil, mid)...)
		b = append(append(append(b, token...), 0x61, seq, 0xff), payload...)
		if _, err := d.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	var token []byte
	get := receive("the gateway's GET", func(p []byte) bool { return p[0]>>4 == 4 && p[1] == 1 })
	token = append(token, get[4:4+get[0]&15]...)
	respond(2, binary.BigEndian.Uint16(get[2:]), token, 1, "40")
	cloud.expect("dt/gw/th-1/level 40")
	respond(0, 7, token, 2, "41")
	receive("the ACK of the notification", func(p []byte) bool { return p[0] == 0x60 && p[1] == 0 && p[3] == 7 })
	cloud.expect("dt/gw/th-1/level 41")
}
