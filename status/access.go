package status

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// caller is who asks.
type caller struct {
	name     string      // for the audit log: "uid 0", "local", the name of a person who has logged in
	operator bool        // may act, not only look
	leaves   bool        // has logged in, and so may log out
	gone     func() bool // tells whether the session has ended meanwhile; nil: there is none that could
	refused  string      // why it may do nothing; empty: it may
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

func withCaller(r *http.Request, c caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

// asLocal lets everybody on a loopback address look and act.
func asLocal(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, withCaller(r, caller{name: "local " + r.RemoteAddr, operator: true}))
	})
}

// localHost refuses requests whose Host does not name this machine: a page elsewhere whose name was made to lead here (DNS rebinding).
func localHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if !isLoopback(host) {
			http.Error(w, "this address is served to this machine alone: ask for it as localhost", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// secure sets the headers that keep a browser from doing more than the page needs.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
			"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// onlyTLS tells browsers never to come without TLS again.
func onlyTLS(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
		next.ServeHTTP(w, r)
	})
}

// withPeer puts into the connection's context who is at the other end of the local socket.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, peer(conn))
}

// peer asks the kernel who has connected: root, the gateway's own user, and members of its own group may act.
func peer(conn net.Conn) caller {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return caller{refused: "not a local socket"}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return caller{refused: err.Error()}
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		err = e
	}
	if err != nil {
		return caller{refused: err.Error()}
	}
	who := caller{name: fmt.Sprintf("uid %d pid %d", cred.Uid, cred.Pid), operator: true}
	if !mayAct(cred, os.Getuid(), os.Getgid()) {
		return caller{name: who.name, refused: fmt.Sprintf("user %d is neither root, nor the gateway's user, nor in its group", cred.Uid)}
	}
	return who
}

func mayAct(cred *unix.Ucred, uid, gid int) bool {
	if cred.Uid == 0 || int(cred.Uid) == uid || int(cred.Gid) == gid {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(int(cred.Uid)))
	if err != nil {
		return false
	}
	groups, err := u.GroupIds()
	return err == nil && slices.Contains(groups, strconv.Itoa(gid))
}

// peersOnly lets in those whom peer has let in.
func peersOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := callerOf(r.Context()); c.refused != "" || c.name == "" {
			writeError(w, http.StatusForbidden, &Refused{Message: "denied: " + c.refused, Advice: "use sudo, or join the gateway's group"})
			return
		}
		next.ServeHTTP(w, r)
	})
}
