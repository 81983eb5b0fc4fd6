package northtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// ServeHTTP adds the HTTP binding (TS-0009), over TLS with client certificates, and gives its URL.
func (c *CSE) ServeHTTP() (url string) {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.listenHTTP(l)
	c.notifyHTTP()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return "https://localhost:" + port
}

// ServeHTTPAndMove is ServeHTTP at 127.0.0.1, under the first of Hosts, until move: then the CSE is at 127.0.0.2.
func (c *CSE) ServeHTTPAndMove() (url string, move func()) {
	c.t.Helper()
	here, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(here.Addr().String())
	there, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		here.Close()
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { there.Close() })
	stop := c.listenHTTP(here)
	c.notifyHTTP()
	return "https://" + c.Hosts[0] + ":" + port, func() {
		stop()
		c.listenHTTP(there)
	}
}

// listenHTTP serves until the test ends or stop is called.
func (c *CSE) listenHTTP(l net.Listener) (stop func()) {
	c.t.Helper()
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	server := &http.Server{
		Handler: http.HandlerFunc(c.serveHTTP), ErrorLog: log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return c.ctx },
		ConnState: func(conn net.Conn, s http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			if s == http.StateNew {
				conns[conn] = true
			} else if s == http.StateClosed || s == http.StateHijacked {
				delete(conns, conn)
			}
		},
	}
	c.drop = append(c.drop, func() {
		mu.Lock()
		defer mu.Unlock()
		for conn := range conns {
			conn.(*tls.Conn).NetConn().Close()
		}
	})
	security := c.server()
	var served sync.WaitGroup
	served.Go(func() { server.Serve(tls.NewListener(l, security)) })
	stop = func() {
		server.Close()
		served.Wait()
	}
	c.t.Cleanup(stop)
	return stop
}

// notifyHTTP lets the CSE notify AEs by HTTP.
func (c *CSE) notifyHTTP() {
	c.t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: c.CA.Pool(), Certificates: []tls.Certificate{c.CA.Certificate(c.t, broker.Subject{Name: "cse"})},
	}}}
	c.reach["http"] = func(ctx context.Context, poa, _ string, q cseMap) (cseMap, error) {
		return cseNotify(ctx, client, poa, q)
	}
	c.t.Cleanup(client.CloseIdleConnections)
}

// cseNotify sends a notification to an AE's HTTP server.
func cseNotify(ctx context.Context, client *http.Client, poa string, q cseMap) (cseMap, error) {
	body, err := json.Marshal(q["pc"])
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, poa, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = http.Header{
		"Content-Type": {"application/vnd.onem2m-ntfy+json"}, "X-M2M-Origin": {q["fr"].(string)},
		"X-M2M-Ri": {q["rqi"].(string)}, "X-M2M-Rvi": {"3"},
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, answer.Body)
	rsc, err := strconv.Atoi(answer.Header.Get("X-M2M-RSC"))
	return cseMap{"rsc": rsc, "rqi": answer.Header.Get("X-M2M-RI")}, err
}

// cseStatuses is table 6.3.2-1 of TS-0009, as far as this CSE answers.
var cseStatuses = map[int]int{
	1001: 202, 1002: 202, 2000: 200, 2001: 201, 2004: 200, 4000: 400, 4004: 404, 4005: 405, 4008: 504, 4102: 400, 4103: 403, 4105: 409, 4106: 403, 4108: 403,
	4110: 400, 4117: 403, 5000: 500, 5204: 500, 5206: 501, 5207: 406, 6010: 400,
}

// cseTo gives the address that a path stands for (TS-0009 clause 6.2.2.2, TS-0008 clause 6.2.2.2).
func cseTo(path string) string {
	switch {
	case strings.HasPrefix(path, "/~/"):
		return path[2:]
	case strings.HasPrefix(path, "/_/"):
		return "/" + path[2:]
	}
	return strings.TrimPrefix(path, "/")
}

func (c *CSE) serveHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	q := cseMap{"fr": r.Header.Get("X-M2M-Origin"), "rqi": r.Header.Get("X-M2M-RI"), "rvi": r.Header.Get("X-M2M-RVI")}
	q["to"] = cseTo(r.URL.Path)
	q["op"] = map[string]int{http.MethodPost: 5, http.MethodGet: 2, http.MethodPut: 3, http.MethodDelete: 4}[r.Method]
	media, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if ty, err := strconv.Atoi(params["ty"]); err == nil {
		q["op"], q["ty"] = 1, ty
	}
	if len(body) > 0 {
		if m, ok := decodeCSE(body); ok && strings.HasSuffix(media, "json") {
			q["pc"] = m
		}
	}
	if et := r.Header.Get("X-M2M-RET"); et != "" {
		q["rqet"] = et
	}
	cseQuery(q, r.URL.Query(), r.Header.Get("X-M2M-RTU"))
	authorization := r.Header.Get("Authorization")
	if authorization != "" && !strings.HasPrefix(authorization, "Bearer ") {
		list := []any{}
		for t := range strings.SplitSeq(authorization, "+") {
			list = append(list, t)
		}
		q["tkns"] = list
	}
	c.mu.Lock()
	status := c.quirks.StatusOf
	c.mu.Unlock()
	if status != 0 && cseInt(q["ty"]) == 4 {
		http.Error(w, "upstream", status)
		return
	}
	answer, cut := c.handle(r.Context(), q, caller{authorization, r.TLS.PeerCertificates[0].Subject.CommonName})
	if cut {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	h["X-M2M-RI"], h["X-M2M-RVI"] = []string{fmt.Sprint(answer["rqi"])}, []string{fmt.Sprint(answer["rvi"])}
	rsc := cseInt(answer["rsc"])
	if raw, ok := answer["rsc"].(json.RawMessage); ok {
		rsc, _ = strconv.Atoi(strings.TrimSuffix(string(raw), ".0"))
		h["X-M2M-RSC"] = []string{string(raw)}
	} else {
		h["X-M2M-RSC"] = []string{strconv.Itoa(rsc)}
	}
	if pc := answer["pc"]; pc != nil {
		h.Set("Content-Type", "application/json")
		w.WriteHeader(cseStatuses[rsc])
		json.NewEncoder(w).Encode(pc)
		return
	}
	w.WriteHeader(cseStatuses[rsc])
}

// cseQuery reads what HTTP and CoAP carry in the query.
func cseQuery(q cseMap, query map[string][]string, targets string) {
	fc := cseMap{}
	for name, values := range query {
		switch name {
		case "rcn", "drt", "op":
			q[name], _ = strconv.Atoi(values[0])
		case "rt":
			n, _ := strconv.Atoi(values[0])
			rt := cseMap{"rtv": n}
			if targets != "" {
				rt["nu"] = strings.Split(targets, "&")
			}
			q[name] = rt
		case "fu":
			fc[name], _ = strconv.Atoi(values[0])
		case "ty":
			list := []any{}
			for _, v := range values {
				n, _ := strconv.Atoi(v)
				list = append(list, n)
			}
			fc[name] = list
		case "tkns":
			list := []any{}
			for _, v := range values {
				list = append(list, v)
			}
			q[name] = list
		default:
			fc[name] = values[0]
		}
	}
	if len(fc) > 0 {
		q["fc"] = fc
	}
}
