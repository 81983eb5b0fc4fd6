package status

import (
	"io/fs"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEveryTextIsInEveryLanguage(t *testing.T) {
	for _, l := range languages {
		for key, text := range english.texts {
			if got, ok := l.texts[key]; !ok && !strings.HasSuffix(key, ".one") {
				t.Errorf("%s lacks %q", l.Tag, key)
			} else if ok && strings.Count(got, "%s") != strings.Count(text, "%s") {
				t.Errorf("%s: %q has other places to fill", l.Tag, key)
			}
		}
		for key := range l.texts {
			if _, ok := english.texts[key]; !ok && !slices.Contains([]string{"problem", "hint", "what", "advice"}, strings.Split(key, ".")[0]) {
				t.Errorf("%s has %q, which English lacks", l.Tag, key)
			}
		}
	}
}

// uses are the ways in which templates and code name a text.
var uses = []*regexp.Regexp{
	regexp.MustCompile(`(?:\$?\.[TC]) "([a-z.]+)"`),
	regexp.MustCompile(`(?:l|L|english)\.(?:text|textf|count)\("([a-z.]+)"`),
	regexp.MustCompile(`"(path\.[a-z]+)"`),
}

func TestEveryTextIsUsedAndEveryUseHasAText(t *testing.T) {
	used := map[string]bool{}
	read := func(path string, data []byte) {
		for _, re := range uses {
			for _, m := range re.FindAllStringSubmatch(string(data), -1) {
				used[m[1]] = true
				if _, ok := english.texts[m[1]]; !ok && !strings.HasSuffix(m[1], ".") {
					t.Errorf("%s uses %q, which is no text", path, m[1])
				}
			}
		}
	}
	files, err := fs.Glob(os.DirFS("."), "web/*.html")
	if err != nil {
		t.Fatal(err)
	}
	sources, err := fs.Glob(os.DirFS("."), "*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(files, sources...) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(path, "_test.go") {
			read(path, data)
		}
	}
	composed := []string{"nav.", "severity.", "state.", "level.", "direction.", "unit.", "verdict.", "told.", "login."}
	for key := range english.texts {
		if !used[key] && !strings.HasSuffix(key, ".one") && !slices.ContainsFunc(composed, func(p string) bool { return strings.HasPrefix(key, p) }) {
			t.Errorf("%q is never used", key)
		}
	}
}

func TestLanguageOfARequest(t *testing.T) {
	for name, c := range map[string]struct{ url, cookie, accept, want string }{
		"English where nothing is said":        {"/", "", "", "en"},
		"the browser's":                        {"/", "", "ko-KR,ko;q=0.9,en;q=0.8", "ko"},
		"the first that there is":              {"/", "", "fr, ko;q=0.5, en;q=0.4", "ko"},
		"the cookie before the browser's":      {"/", "en", "ko", "en"},
		"the query before all":                 {"/?lang=ko", "en", "en", "ko"},
		"a language that there is not":         {"/?lang=xx", "yy", "zz", "en"},
		"a language that would leave its file": {"/?lang=../../etc/passwd", "", "", "en"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", c.url, nil)
			r.Header.Set("Accept-Language", c.accept)
			if c.cookie != "" {
				r.Header.Set("Cookie", "lang="+c.cookie)
			}
			if got := languageOf(r); got.Tag != c.want {
				t.Errorf("got %s", got.Tag)
			}
		})
	}
}

func TestFiguresInWords(t *testing.T) {
	for got, want := range map[string]string{
		number(0): "0", number(999): "999", number(1000): "1\u2009000", number(1234567): "1\u2009234\u2009567", number(-4321): "-4\u2009321",
		Size(0): "0 B", Size(1023): "1023 B", Size(1536): "1.5 KiB", Size(48 << 20): "48 MiB", Size(1 << 30): "1.0 GiB", Size(3 << 40): "3.0 TiB",
		english.span(0): "0 s", english.span(250 * time.Microsecond): "250 µs", english.span(40 * time.Millisecond): "40 ms",
		english.span(59 * time.Second): "59 s", english.span(61 * time.Second): "1 min", english.span(76 * time.Hour): "3 d 4 h",
		english.span(2 * time.Hour): "2 h", english.span(-time.Hour): "−1 h", korean.span(76 * time.Hour): "3일 4시간",
		english.since(time.Time{}, noon): "never", english.since(noon.Add(time.Hour), noon): "0 s",
		shorten("sensors", 20): "sensors", shorten("a-very-long-name-of-a-route", 10): "a-very-lon…", shorten("아주 긴 이름의 경로", 10): "아주 긴 이…",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
