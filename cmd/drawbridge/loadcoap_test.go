package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pion/dtls/v3"
)

// coapDevice is a device on CoAP over DTLS with a PSK, or plain: the least that sends confirmable requests and waits for
// their responses, as RFC 7252 section 4.2 has it with NSTART = 1.
type coapDevice struct {
	net.Conn
	mid   uint16
	token uint32
	buf   []byte
	out   []byte
	sent  int64 // requests, retransmissions included
	udp   *connected
}

func dialCoAP(ctx context.Context, addr, identity string, psk []byte) (*coapDevice, error) {
	raddr, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	uc, err := net.DialUDP("udp", nil, raddr)
	if err != nil {
		return nil, err
	}
	udp := &connected{UDPConn: uc}
	dc, err := dtls.ClientWithOptions(udp, raddr,
		dtls.WithPSK(func([]byte) ([]byte, error) { return psk, nil }),
		dtls.WithPSKIdentityHint([]byte(identity)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_GCM_SHA256),
		dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()),
	)
	if err != nil {
		uc.Close()
		return nil, err
	}
	if err := dc.HandshakeContext(ctx); err != nil {
		dc.Close()
		return nil, err
	}
	return &coapDevice{Conn: dc, mid: uint16(time.Now().UnixNano()), buf: make([]byte, 2048), udp: udp}, nil
}

// connected makes a packet connection of a connected socket.
type connected struct {
	*net.UDPConn
	deaf atomic.Bool // a port that is closed for a moment is as good as a datagram that is lost
}

func (c *connected) WriteTo(p []byte, _ net.Addr) (int, error) {
	n, err := c.UDPConn.Write(p)
	if c.deaf.Load() && errors.Is(err, syscall.ECONNREFUSED) {
		return len(p), nil
	}
	return n, err
}

func (c *connected) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.UDPConn.ReadFrom(p)
		if !c.deaf.Load() || !errors.Is(err, syscall.ECONNREFUSED) {
			return n, from, err
		}
	}
}

// request sends a confirmable request and gives the response's code. It retransmits after wait, up to tries times, with
// the same message id.
func (d *coapDevice) request(code byte, path string, payload []byte, wait time.Duration, tries int) (byte, error) {
	d.mid++
	d.token++
	o := append(d.out[:0], 0x44, code, byte(d.mid>>8), byte(d.mid))
	o = binary.BigEndian.AppendUint32(o, d.token)
	last := 0
	for segment := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		o = append(o, byte(11-last)<<4|byte(min(len(segment), 13)))
		if len(segment) >= 13 {
			o = append(o, byte(len(segment)-13))
		}
		o, last = append(o, segment...), 11
	}
	if len(payload) > 0 {
		o = append(append(o, 0xff), payload...)
	}
	d.out = o
	for range tries {
		if _, err := d.Write(o); err != nil {
			return 0, err
		}
		d.sent++
		d.SetReadDeadline(time.Now().Add(wait))
		for {
			n, err := d.Read(d.buf)
			if err != nil {
				if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
					break
				}
				return 0, err
			}
			p := d.buf[:n]
			if n < 4 || p[0]>>6 != 1 || len(p) < 4+int(p[0]&15) {
				continue
			}
			if tkl := int(p[0] & 15); tkl != 4 || binary.BigEndian.Uint32(p[4:]) != d.token || p[1] == 0 {
				continue
			}
			if p[0]>>4&3 == 0 { // a confirmable separate response is acknowledged
				d.Write([]byte{0x60, 0, p[2], p[3]})
			}
			return p[1], nil
		}
	}
	return 0, fmt.Errorf("coap: no response to %s after %d tries", path, tries)
}
