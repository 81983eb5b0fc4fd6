package status

import (
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/drawbridge/drawbridge/internal/health"
)

//go:embed lang/*.json
var langFiles embed.FS

// language is one language of the page. A text that a language lacks is shown in English.
type language struct {
	Tag   string // BCP 47
	Name  string // in the language itself
	texts map[string]string
}

var (
	english   = readLanguage("en", "English")
	korean    = readLanguage("ko", "한국어")
	languages = []*language{english, korean}
)

// readLanguage reads a file that is part of the program: a fault in it is one of the build, and the tests find it.
func readLanguage(tag, name string) *language {
	l := &language{Tag: tag, Name: name}
	data, err := langFiles.ReadFile("lang/" + tag + ".json")
	if err == nil {
		err = json.Unmarshal(data, &l.texts)
	}
	if err != nil {
		panic(fmt.Sprintf("language %s: %v", tag, err))
	}
	return l
}

// text gives the text of a key; the key itself where no language has it.
func (l *language) text(key string) string {
	if s, ok := l.texts[key]; ok {
		return s
	}
	if s, ok := english.texts[key]; ok {
		return s
	}
	return key
}

func (l *language) textf(key string, args ...any) string { return fmt.Sprintf(l.text(key), args...) }

// count gives the text for n things. A key with ".one" is for a single one, as English wants it.
func (l *language) count(key string, n int) string {
	if n == 1 {
		if s, ok := l.texts[key+".one"]; ok {
			return s
		}
	}
	return l.textf(key, number(n))
}

// title gives the title of a problem.
func (l *language) title(p health.Problem) string {
	if s, ok := l.texts["problem."+p.Code]; ok {
		return s
	}
	return p.Title
}

// hint gives the hint of a problem. One that fits the very error is worth more than one of its kind, whatever its language.
func (l *language) hint(p health.Problem) string {
	if p.Precise {
		if s, ok := l.explained(p, "advice."); ok {
			return s
		}
		return p.Hint
	}
	if s, ok := l.texts["hint."+p.Code]; ok {
		return s
	}
	return p.Hint
}

// detail gives the detail of a problem; the words of the error itself stay as they are.
func (l *language) detail(p health.Problem) string {
	if s, ok := l.explained(p, "what."); ok {
		return health.Beside(s, p.Own)
	}
	return p.Detail
}

// explained gives a text of what explains the problem.
func (l *language) explained(p health.Problem, kind string) (string, bool) {
	if p.Explained == nil {
		return "", false
	}
	s, ok := l.texts[kind+p.Explained.Name]
	return p.Explained.Say(s, l.span), ok
}

// languageOf gives the language that a request asks for: by the query or the cookie "lang", else by Accept-Language.
func languageOf(r *http.Request) *language {
	find := func(tag string) *language {
		primary, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(tag)), "-")
		for _, l := range languages {
			if l.Tag == primary {
				return l
			}
		}
		return nil
	}
	if l := find(r.URL.Query().Get("lang")); l != nil {
		return l
	}
	if c, err := r.Cookie("lang"); err == nil {
		if l := find(c.Value); l != nil {
			return l
		}
	}
	// Browsers list the languages in order of preference; weights that say otherwise are not worth a parser.
	for tag := range strings.SplitSeq(r.Header.Get("Accept-Language"), ",") {
		tag, _, _ = strings.Cut(tag, ";")
		if l := find(tag); l != nil {
			return l
		}
	}
	return english
}
