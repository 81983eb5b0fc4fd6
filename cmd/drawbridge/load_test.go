package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The devices and the subscriber of benchmarks and kill tests: the least that speaks MQTT 3.1.1 on the real wire, so that what is
// measured is the program at the other end.

// wireConn is an MQTT connection that has been accepted by its broker.
type wireConn struct {
	net.Conn
	r       *bufio.Reader
	present bool // the broker had a session of this client
}

func mqttString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func mqttPacket(kind byte, body []byte) []byte {
	p := []byte{kind}
	for n := len(body); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			p = append(p, b|0x80)
			continue
		}
		p = append(p, b)
		break
	}
	return append(p, body...)
}

// readPacket reads one packet. The body is valid until the next read.
func (c *wireConn) readPacket(buf []byte) (kind byte, body []byte, err error) {
	kind, err = c.r.ReadByte()
	if err != nil {
		return 0, nil, err
	}
	n, shift := 0, 0
	for {
		b, err := c.r.ReadByte()
		if err != nil {
			return 0, nil, err
		}
		n |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift += 7; shift > 21 {
			return 0, nil, errors.New("mqtt: malformed length")
		}
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	_, err = io.ReadFull(c.r, buf)
	return kind, buf, err
}

type wireOptions struct {
	clientID, user, password string
	persistent               bool
	v5                       bool
}

func dialMQTT(ctx context.Context, addr string, conf *tls.Config, o wireOptions) (*wireConn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if conf != nil {
		tc := tls.Client(nc, conf)
		if err := tc.HandshakeContext(ctx); err != nil {
			nc.Close()
			return nil, err
		}
		nc = tc
	}
	var flags byte
	if !o.persistent {
		flags |= 2
	}
	if o.user != "" {
		flags |= 0xc0
	}
	body := append(mqttString(nil, "MQTT"), 4, flags, 0, 60)
	if o.v5 {
		body[6] = 5
		body = append(body, 0) // no properties
	}
	body = mqttString(body, o.clientID)
	if o.user != "" {
		body = mqttString(mqttString(body, o.user), o.password)
	}
	c := &wireConn{Conn: nc, r: bufio.NewReaderSize(nc, 64<<10)}
	if _, err := nc.Write(mqttPacket(0x10, body)); err != nil {
		nc.Close()
		return nil, err
	}
	nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	kind, ack, err := c.readPacket(nil)
	nc.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		nc.Close()
		return nil, fmt.Errorf("mqtt: connack: %w", err)
	case kind != 0x20 || len(ack) < 2 || ack[1] != 0:
		nc.Close()
		return nil, fmt.Errorf("mqtt: connack: %x %x", kind, ack)
	}
	c.present = ack[0]&1 != 0
	return c, nil
}

func publishPacket(topic string, id uint16, payload []byte) []byte {
	body := mqttString(nil, topic)
	body = binary.BigEndian.AppendUint16(body, id)
	return mqttPacket(0x32, append(body, payload...))
}

// publish5 sends one message at QoS 1 over MQTT 5 and gives the reason code of its PUBACK.
func (c *wireConn) publish5(topic string, payload []byte) (byte, error) {
	body := append(mqttString(nil, topic), 0, 1, 0)
	if _, err := c.Write(mqttPacket(0x32, append(body, payload...))); err != nil {
		return 0, err
	}
	kind, ack, err := c.readPacket(nil)
	switch {
	case err != nil:
		return 0, err
	case kind != 0x40 || len(ack) < 2:
		return 0, fmt.Errorf("mqtt: %x %x instead of PUBACK", kind, ack)
	case len(ack) == 2:
		return 0, nil
	}
	return ack[2], nil
}

// publishAll sends count messages at QoS 1 with at most window unacknowledged, one every pace where that is not zero, and returns
// when all are acknowledged. payload makes the n-th payload.
func (c *wireConn) publishAll(topic string, count, window int, pace time.Duration, payload func(n int) []byte) error {
	slots := make(chan struct{}, window)
	failed := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		buf := make([]byte, 64)
		for got := 0; got < count; {
			kind, body, err := c.readPacket(buf)
			if err != nil {
				failed <- err
				return
			}
			if kind == 0x40 && len(body) >= 2 {
				got++
				<-slots
			}
		}
		close(done)
	}()
	w := bufio.NewWriterSize(c.Conn, 16<<10)
	next := time.Now()
	for n := range count {
		if pace > 0 {
			if err := w.Flush(); err != nil {
				return err
			}
			time.Sleep(time.Until(next))
			next = next.Add(pace)
		}
		select {
		case slots <- struct{}{}:
		default:
			if err := w.Flush(); err != nil {
				return err
			}
			select {
			case slots <- struct{}{}:
			case err := <-failed:
				return err
			}
		}
		if _, err := w.Write(publishPacket(topic, uint16(n%65535)+1, payload(n))); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case err := <-failed:
		return err
	}
}

// subscribe subscribes and calls each until the connection ends, acknowledging what it is given.
func (c *wireConn) subscribe(filter string, qos byte, each func(topic string, payload []byte)) error {
	body := binary.BigEndian.AppendUint16(nil, 1)
	body = append(mqttString(body, filter), qos)
	if _, err := c.Write(mqttPacket(0x82, body)); err != nil {
		return err
	}
	kind, ack, err := c.readPacket(nil)
	if err != nil || kind != 0x90 || ack[2] > 2 {
		return fmt.Errorf("mqtt: suback %x %x: %v", kind, ack, err)
	}
	go func() {
		var acks []byte
		buf := make([]byte, 64<<10)
		for {
			kind, body, err := c.readPacket(buf)
			if err != nil {
				return
			}
			if kind&0xf0 != 0x30 {
				continue
			}
			n := int(binary.BigEndian.Uint16(body))
			topic, rest := string(body[2:2+n]), body[2+n:]
			if kind&0x06 != 0 {
				acks = append(acks, 0x40, 2, rest[0], rest[1])
				rest = rest[2:]
			}
			each(topic, rest)
			if len(acks) > 0 && (c.r.Buffered() == 0 || len(acks) > 4096) {
				if _, err := c.Write(acks); err != nil {
					return
				}
				acks = acks[:0]
			}
		}
	}()
	return nil
}

// usage is what /proc says of a process.
type procUsage struct {
	rss, peak int64         // octets
	cpu       time.Duration // user and system
}

func usageOf(t testing.TB, pid int) (u procUsage) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("memory of process %d: %v", pid, err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "VmRSS:":
			u.rss, _ = strconv.ParseInt(f[1], 10, 64)
			u.rss <<= 10
		case "VmHWM:":
			u.peak, _ = strconv.ParseInt(f[1], 10, 64)
			u.peak <<= 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatalf("cpu of process %d: %v", pid, err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	u.cpu = time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on Linux
	return u
}

// spread is the lowest, the middle and the highest of what was measured.
type spread struct{ min, median, max float64 }

func spreadOf(v []float64) spread {
	v = slices.Sorted(slices.Values(v))
	return spread{v[0], v[len(v)/2], v[len(v)-1]}
}
