package broker_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		filter, topic string
		want          bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a/b", "a", false}, {"a", "a/b", false},
		{"#", "a/b", true}, {"#", "$SYS/x", false}, {"+/x", "$SYS/x", false}, {"$SYS/#", "$SYS/x", true},
		{"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/+", "a", false}, {"a/+", "a/", true}, {"a/+", "a/b", true}, {"a/+", "a/b/c", false},
		{"+/+", "/a", true}, {"/+", "/a", true}, {"+", "/a", false}, {"a//b", "a//b", true}, {"a/+/b", "a//b", true}, {"", "", true},
	} {
		if got := broker.Match(test.filter, test.topic); got != test.want {
			t.Errorf("Match(%q, %q) = %t", test.filter, test.topic, got)
		}
	}
}

// FuzzClient sends anything to a broker, after a good CONNECT and before. It must neither panic nor hold on to the connection.
func FuzzClient(f *testing.F) {
	const connect5 = "\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01a"
	const connect4 = "\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a"
	for _, rest := range []string{
		"", "\x30\x04\x00\x01ax", "\x32\x07\x00\x01a\x00\x01\x00x", "\x34\x06\x00\x01a\x00\x01x\x62\x02\x00\x01", "\x82\x06\x00\x01\x00\x01a\x01",
		"\x82\x07\x00\x01\x00\x00\x01#\x01\x30\x05\x00\x01a\x00x", "\x82\x05\x00\x01\x00\x00\x01", "\xa2\x06\x00\x01\x00\x00\x01a", "\xc0\x00", "\xe0\x00", "\xf0\x02\x19\x00",
	} {
		f.Add([]byte(rest))
		f.Add([]byte(connect5 + rest))
		f.Add([]byte(connect4 + rest))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := broker.New(broker.Options{})
		near, far := net.Pipe()
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		wg.Go(func() { b.ServeConn(ctx, far) })
		wg.Go(func() { io.Copy(io.Discard, near) })
		near.Write(data)
		near.Close()
		wg.Wait()
		if ctx.Err() != nil {
			t.Fatal("the broker does not let go")
		}
		if n := len(b.Clients()); n != 0 {
			t.Fatalf("%d clients left", n)
		}
	})
}
