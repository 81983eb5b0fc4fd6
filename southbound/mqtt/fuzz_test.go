package mqtt

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// FuzzConnection sends octets after a good CONNECT, and as CONNECT. Whatever they are, the connection ends, and nothing else does.
func FuzzConnection(f *testing.F) {
	for _, s := range []string{
		"\x82\x07\x00\x01\x00\x00\x01#\x02\x30\x05\x00\x01a\x00x\x34\x07\x00\x01a\x00\x01\x00x\x62\x02\x00\x01\xe0\x00",
		"\x31\x05\x00\x01a\x00x\x82\x07\x00\x01\x00\x00\x01a\x01\xa2\x06\x00\x01\x00\x00\x01a",
		"\x32\x0a\x00\x01a\x00\x01\x03\x23\x00\x01x\x32\x09\x00\x00\x00\x02\x03\x23\x00\x01x", "\x40\x02\x00\x01\x50\x02\x00\x01\x70\x02\x00\x01",
		"\xf0\x00", "\x10\x00", "\x30\xff\xff\xff\x7f",
	} {
		for kind := range byte(3) {
			f.Add(kind, []byte(s))
		}
	}
	site := southtest.NewSite(f)
	site.Log = slog.New(slog.DiscardHandler)
	cfg := defaults()
	cfg.Security, cfg.Auth, cfg.MaxSessionExpiry = []string{"none"}, []string{"anonymous"}, 0
	open, err := NewKind().Open(site.Env(f, "fuzz"), cfg)
	if err != nil {
		f.Fatal(err)
	}
	l := open.(*listener)
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.Context()))
	l.ctx, l.up, l.lobby.limit = ctx, southtest.NewUplink(), 10
	if l.store, err = openStore(l.env.State, l.env.Health); err != nil {
		f.Fatal(err)
	}
	go l.store.run()
	f.Cleanup(func() {
		cancel()
		l.wg.Wait()
		if err := l.store.close(); err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, kind byte, octets []byte) {
		hello := ""
		switch kind % 3 {
		case 1:
			hello = "\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01f"
		case 2:
			hello = "\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01f"
		}
		client, server := net.Pipe()
		l.wg.Go(func() { l.greet(ctx, server, l.lobby.enter(server)) })
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, client)
		}()
		client.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = client.Write(append([]byte(hello), octets...))
		client.Close()
		<-read
		l.wg.Wait()
		if n := l.count.sessions.Load(); n != 0 {
			t.Fatalf("%d connections are left", n)
		}
	})
}
