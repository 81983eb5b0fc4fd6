package status

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/drawbridge/drawbridge/internal/health"
)

//go:embed web
var webFiles embed.FS

// sheet is one page: a template of its name, and the parts of it that live values move.
type sheet struct {
	name  string
	path  string
	parts []string // templates; each is one element whose id is the name
	has   func(*Server) bool
	load  func(*Server, *view, *http.Request) error
}

func always(*Server) bool { return true }

// sheets are the pages in the order of the navigation.
var sheets = []sheet{
	{"overview", "/", []string{"verdict", "figures", "problems", "path", "plots"}, always, (*Server).loadOverview},
	{"devices", "/devices", []string{"verdict", "devicelist"}, can[DeviceLister], (*Server).loadDevices},
	{"routes", "/routes", []string{"verdict", "routelist"}, always, nil},
	{"clouds", "/clouds", []string{"verdict", "cloudlist", "listenerlist"}, always, nil},
	{"keys", "/keys", []string{"verdict", "keylist"}, always, nil},
	{"dead", "/dead", []string{"verdict", "letterlist"}, can[DeadLetters], (*Server).loadDead},
	{"log", "/log", []string{"verdict", "loglist"}, func(s *Server) bool { return s.o.Records != nil }, (*Server).loadLog},
}

// can tells whether the source has an ability.
func can[A any](s *Server) bool {
	_, ok := s.o.Source.(A)
	return ok
}

// templates are parsed from files that are part of the program: a fault in them is one of the build, and the tests find it.
var templates = template.Must(template.New("").ParseFS(webFiles, "web/*.html"))

// view is what a template sees.
type view struct {
	*moment
	L      *language
	Langs  []*language
	Sheets []sheet
	Sheet  sheet
	Who    caller
	Can    abilities
	Query  url.Values
	Here   string // path and query, for links that keep them

	Wide, Tall picture
	Plots      []plot
	Day        bool
	List       DeviceList
	Letters    []DeadLetter
	Lines      []LogLine
	Tried      *tried
}

// abilities say which actions are offered.
type abilities struct{ Reload, Test, Disconnect, Pause, Probe, Forget, Acknowledge bool }

// tried is a report that was tried on the routes.
type tried struct {
	Asked RouteTest
	RouteResult
	Error string
}

func (s *Server) view(r *http.Request, sh sheet) *view {
	v := &view{moment: s.moment(), L: languageOf(r), Langs: languages, Sheet: sh, Who: callerOf(r.Context()), Query: r.URL.Query()}
	for _, other := range sheets {
		if other.has(s) {
			v.Sheets = append(v.Sheets, other)
		}
	}
	v.Can.Test = can[RouteTester](s)
	if v.Who.operator {
		v.Can = abilities{can[Reloader](s), v.Can.Test, can[Disconnecter](s), can[Pauser](s), can[Prober](s), can[Forgetter](s), can[Acknowledger](s)}
	}
	return v
}

// pages adds the pages, their live values and their files.
func (s *Server) pages(mux *http.ServeMux) {
	static, err := fs.Sub(webFiles, "web/static")
	if err == nil {
		mux.Handle("GET /static/", http.StripPrefix("/static/", http.FileServerFS(static)))
	}
	for _, sh := range sheets {
		if !sh.has(s) {
			continue
		}
		pattern := sh.path
		if pattern == "/" {
			pattern = "/{$}"
		}
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) { s.servePage(w, r, sh, nil) })
		mux.HandleFunc("GET /live/"+sh.name, func(w http.ResponseWriter, r *http.Request) { s.serveLive(w, r, sh) })
	}
	if a, ok := s.o.Source.(RouteTester); ok {
		mux.HandleFunc("POST /routes", func(w http.ResponseWriter, r *http.Request) { s.tryRoute(w, r, a) })
	}
}

func (s *Server) servePage(w http.ResponseWriter, r *http.Request, sh sheet, result *tried) {
	v := s.view(r, sh)
	v.Tried = result
	if tag := v.Query.Get("lang"); tag == v.L.Tag {
		http.SetCookie(w, &http.Cookie{Name: "lang", Value: tag, Path: "/", MaxAge: 365 * 24 * 3600, SameSite: http.SameSiteLaxMode, HttpOnly: true, Secure: r.TLS != nil})
	}
	v.Query.Del("lang")
	v.Here = sh.path
	if q := v.Query.Encode(); q != "" {
		v.Here += "?" + q
	}
	if sh.load != nil {
		if err := sh.load(s, v, r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, sh.name, v); err != nil {
		s.o.Log.Error("page", "page", sh.name, "error", err)
		http.Error(w, "this page cannot be shown; the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Language", v.L.Tag)
	w.Write(b.Bytes())
}

func (s *Server) loadOverview(v *view, _ *http.Request) error {
	v.Wide, v.Tall = v.draw(v.L, false), v.draw(v.L, true)
	v.Day = v.Query.Get("span") == "day"
	if v.Day {
		v.Plots = plots(v.L, s.history.lastDay(), v.Time, 24*time.Hour, s.history.day.every)
	} else {
		v.Plots = plots(v.L, s.history.lastHour(), v.Time, time.Hour, s.history.hour.every)
	}
	return nil
}

// pageLength is how many devices a page shows.
const pageLength = 50

func (s *Server) loadDevices(v *view, _ *http.Request) error {
	a, _ := s.o.Source.(DeviceLister)
	v.List = listDevices(a, v.Query.Get("search"), max(0, v.Page()-1)*pageLength, pageLength)
	return nil
}

func (s *Server) loadDead(v *view, r *http.Request) (err error) {
	a, _ := s.o.Source.(DeadLetters)
	v.Letters, err = a.DeadLetters(r.Context(), v.Query.Get("connector"), 200)
	return err
}

func (s *Server) loadLog(v *view, _ *http.Request) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(v.Level())); err != nil {
		return err
	}
	for _, line := range s.o.Records.Lines() {
		if line.Level >= level {
			v.Lines = append(v.Lines, line)
		}
	}
	return nil
}

// tryRoute answers the form of the try-it box.
func (s *Server) tryRoute(w http.ResponseWriter, r *http.Request, a RouteTester) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	t := tried{Asked: RouteTest{Device: r.PostForm.Get("device"), Resource: r.PostForm.Get("resource"), Type: r.PostForm.Get("type")}}
	if p := r.PostForm.Get("payload"); p != "" {
		t.Asked.Payload = []byte(p)
	}
	var err error
	if t.RouteResult, err = a.TestRoute(r.Context(), t.Asked); err != nil {
		t.Error = err.Error()
	}
	for _, sh := range sheets {
		if sh.path == "/routes" {
			s.servePage(w, r, sh, &t)
		}
	}
}

// What follows is for the templates.

// T gives a text in the reader's language.
func (v *view) T(key string) string { return v.L.text(key) }

// C gives the text for n things.
func (v *view) C(key string, n int) string { return v.L.count(key, n) }

// Title, Hint, Detail and Sentence are in the reader's language.
func (v *view) Title(p health.Problem) string  { return v.L.title(p) }
func (v *view) Hint(p health.Problem) []phrase { return phrases(v.L.hint(p)) }
func (v *view) Detail(p health.Problem) string { return v.L.detail(p) }
func (v *view) Sentence() string               { return v.Snapshot.sentence(v.L) }

// phrase is a piece of a hint; what stands in backquotes is something to type.
type phrase struct {
	Text string
	Code bool
}

func phrases(s string) (list []phrase) {
	for i, piece := range strings.Split(s, "`") {
		if piece != "" {
			list = append(list, phrase{piece, i%2 == 1})
		}
	}
	return list
}

// Num, Size, Span, Ago and Rate write figures.
func (v *view) Num(n any) string {
	switch n := n.(type) {
	case int:
		return number(n)
	case int64:
		return number(n)
	case uint64:
		return number(n)
	}
	return fmt.Sprint(n)
}
func (v *view) Size(n int64) string         { return Size(n) }
func (v *view) Span(d time.Duration) string { return v.L.span(d) }
func (v *view) Rate(f float64) string       { return trim(f) }
func (v *view) Ago(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return v.L.since(t, v.Time)
}

// Stamp gives a time for people, and Machine for machines.
func (v *view) Stamp(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.Format("2006-01-02 15:04:05")
}
func (v *view) Machine(t time.Time) string { return t.UTC().Format(time.RFC3339) }
func (v *view) Until(t time.Time) string   { return v.L.span(max(0, t.Sub(v.Time))) }

// Page gives the number of the page of a list, from 1.
func (v *view) Page() int { return min(max(1, atoi(v.Query.Get("page"))), math.MaxInt/2/pageLength) }

// Pages gives how many there are.
func (v *view) Pages() int { return max(1, (v.List.Total+pageLength-1)/pageLength) }

// Turn gives the link to another page of the list.
func (v *view) Turn(by int) string {
	q := url.Values{"page": {fmt.Sprint(v.Page() + by)}}
	if s := v.Query.Get("search"); s != "" {
		q.Set("search", s)
	}
	return v.Sheet.path + "?" + q.Encode()
}

// InLang gives the link to this page in another language.
func (v *view) InLang(tag string) string {
	sep := "?"
	if strings.Contains(v.Here, "?") {
		sep = "&"
	}
	return v.Here + sep + "lang=" + tag
}

// Live gives the address of the page's live values.
func (v *view) Live() string {
	q := url.Values{"lang": {v.L.Tag}}
	for key, values := range v.Query {
		q[key] = values
	}
	return "/live/" + v.Sheet.name + "?" + q.Encode()
}

// RateOf gives what comes in on a route, in messages per second.
func (v *view) RateOf(route string) float64 { return v.routeRate(route) }

// PlotStart gives the words at the left end of the plots.
func (v *view) PlotStart() string {
	if v.Day {
		return v.L.span(-24 * time.Hour)
	}
	return v.L.span(-time.Hour)
}

// pictured is a picture with how it is laid out.
type pictured struct {
	picture
	Class, Label string
}

// Pictured gives the data path "wide" or "tall"; the style sheet shows the one that fits.
func (v *view) Pictured(layout string) pictured {
	p := v.Wide
	if layout == "tall" {
		p = v.Tall
	}
	return pictured{p, layout, v.T("path.label")}
}

// Levels are the choices of the log, and Level is the one that is shown.
func (v *view) Levels() []string { return []string{"info", "warn", "error"} }
func (v *view) Level() string {
	if l := v.Query.Get("level"); slices.Contains(v.Levels(), l) {
		return l
	}
	return "info"
}

// Text shows octets as text where they are text, else as hex; not more than a screen of them.
func (v *view) Text(b []byte) string {
	const most = 2000
	cut := b[:min(len(b), most)]
	text := fmt.Sprintf("% x", cut)
	if utf8.Valid(b) {
		text = strings.ToValidUTF8(string(cut), "")
	}
	if len(cut) < len(b) {
		text += " …"
	}
	return text
}

// Path, Name and Current are for the navigation.
func (s sheet) Path() string { return s.path }
func (s sheet) Name() string { return s.name }

// Operator tells whether the reader may act, Leaves whether there is a log-out, and Name who it is.
func (c caller) Operator() bool { return c.operator }
func (c caller) Leaves() bool   { return c.leaves }
func (c caller) Name() string   { return c.name }
