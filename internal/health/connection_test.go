package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// resolve asks a DNS server that answers each question with answer, or not at all where that is nil.
func resolve(t *testing.T, name string, answer func(question []byte) []byte) error {
	t.Helper()
	s, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if answer == nil {
		s.Close()
	} else {
		defer s.Close()
		go func() {
			b := make([]byte, 512)
			for {
				n, from, err := s.ReadFrom(b)
				if err != nil {
					return
				}
				s.WriteTo(answer(b[:n]), from)
			}
		}()
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", s.LocalAddr().String())
	}}
	_, err = (&net.Dialer{Resolver: r}).DialContext(t.Context(), "tcp", name+":8883")
	return err
}

func TestErrorsOfConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, inUse := net.Listen("tcp", l.Addr().String())
	address := l.Addr().String()
	l.Close()
	_, refused := net.Dial("tcp", address)
	_, elsewhere := net.Listen("tcp", "192.0.2.1:0")
	_, full := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if full == nil {
		full = os.WriteFile("/dev/full", []byte("x"), 0)
	}
	for _, c := range []struct {
		err        error
		what, hint string
	}{
		{refused, "nothing listens at the peer's port", "is the peer running"},
		{inUse, "another program has this address already", "ss -lnptu"},
		{elsewhere, "this machine has no such address", "on all"},
		{resolve(t, "brokr.example.", func(q []byte) []byte {
			a := append([]byte(nil), q...)
			a[2], a[3] = 0x81, 0x83 // NXDOMAIN
			return a
		}), `there is no host "brokr.example."`, "spelled right"},
		{resolve(t, "broker.example.", nil), `no DNS server answers for "broker.example."`, "resolvectl"},
		{full, "the disk is full", "df -h"},
		{silent(t, func(l net.Listener) error {
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			_, err = conn.Read(make([]byte, 1))
			return err
		}), "the peer did not answer in time", "firewall"},
		{silent(t, func(l net.Listener) error {
			c := http.Client{Timeout: 10 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
			_, err := c.Get("http://" + l.Addr().String())
			return err
		}), "the peer did not answer in time", "firewall"},
		{silent(t, func(l net.Listener) error {
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer conn.Close()
			theirs, err := l.Accept()
			if err != nil {
				return err
			}
			theirs.(*net.TCPConn).SetLinger(0)
			theirs.Close()
			_, err = conn.Read(make([]byte, 1))
			return err
		}), "the peer broke the connection off", "log"},
		{silent(t, func(l net.Listener) error {
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer conn.Close()
			theirs, err := l.Accept()
			if err != nil {
				return err
			}
			theirs.Close()
			_, err = io.ReadFull(conn, make([]byte, 1))
			return err
		}), "the peer closed the connection without a word", "policy"},
		// The kernel's own numbers, for what a test cannot do to the machine that it runs on.
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, "the peer's machine does not answer", "is it on"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}, "there is no way to the peer's network", "ip route"},
		{&os.PathError{Op: "open", Path: "/x", Err: syscall.EROFS}, "the disk is read-only", "dmesg"},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.EIO}, "the device does not read or write any more", "dmesg"},
		{&net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}, "the gateway has as many connections and files open as it may", "LimitNOFILE"},
	} {
		means(t, c.err, c.what, c.hint)
	}
	if e, ok := Explain(errors.New("quota exceeded"), today); ok {
		t.Errorf("explained: %+v", e)
	}
}

// silent gives an error of a peer that listens and says nothing.
func silent(t *testing.T, err func(net.Listener) error) error {
	t.Helper()
	l, wrong := net.Listen("tcp", "127.0.0.1:0")
	if wrong != nil {
		t.Fatal(wrong)
	}
	defer l.Close()
	return err(l)
}

func TestErrorsOfAnswers(t *testing.T) {
	for status, c := range map[int]struct {
		what, hint string
		stays      bool
	}{
		401: {"the server does not take this gateway's credentials (401)", "token, secret or key", true},
		403: {"the server forbids this gateway to do that (403)", "rights", true},
		404: {"the server has nothing at this path (404)", "path of the URL", true},
		429: {"the server takes fewer requests than these (429)", "less often", false},
		503: {"the server has a fault of its own, or is overloaded (503)", "asked again", false},
		302: {"the server sends this gateway elsewhere (302), where it does not follow", "write the URL", true},
		407: {"the proxy on the way wants a log-in (407)", "HTTPS_PROXY", true},
	} {
		means(t, &Answer{Status: status}, c.what, c.hint)
		if Stays(&Answer{Status: status}) != c.stays {
			t.Errorf("%d: stays is not %t", status, c.stays)
		}
	}
}

func TestErrorsOfProxies(t *testing.T) {
	through := func(status int) error {
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		at, err := url.Parse(proxy.URL)
		if err != nil {
			t.Fatal(err)
		}
		if status == 0 {
			proxy.Close()
		} else {
			defer proxy.Close()
		}
		wire := &http.Transport{Proxy: http.ProxyURL(at), OnProxyConnectResponse: ProxyAnswer}
		defer wire.CloseIdleConnections()
		_, err = (&http.Client{Transport: wire}).Get("https://issuer.example/")
		return err
	}
	means(t, through(407), "the proxy on the way wants a log-in (407)", "HTTPS_PROXY")
	means(t, through(403), "the proxy on the way does not connect to the peer (403)", "NO_PROXY")
	means(t, through(0), "the proxy of this machine's environment cannot be reached", "HTTPS_PROXY")
}

func TestForbiddenFiles(t *testing.T) {
	if os.Getuid() == 0 {
		means(t, &os.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, "this user may not do that", "owner's leave") // root may everything
		return
	}
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	_, err := os.Open(path)
	means(t, fmt.Errorf("secret: %w", err), "this user may not do that", "owner's leave")
}
