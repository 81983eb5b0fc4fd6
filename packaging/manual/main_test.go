package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// offered gives what the shell would be offered after words: the verbs or, after "--", the flags.
func offered(t *testing.T, binary string, words ...string) (list []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, append([]string{"__complete"}, words...)...).Output()
	if err != nil {
		t.Fatalf("%q: %v", words, err)
	}
	for line := range strings.Lines(string(out)) {
		if word, _, about := strings.Cut(strings.TrimSpace(line), "\t"); about && word != "help" {
			list = append(list, word)
		}
	}
	return list
}

func TestEveryVerbAndFlagIsInTheManual(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "drawbridge")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", binary, "github.com/drawbridge/drawbridge/cmd/drawbridge").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var page bytes.Buffer
	if err := write(t.Context(), &page, binary, "1.2", "2026-11-22"); err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(page.String(), "\n.S")[1:] {
		title, text, _ := strings.Cut(s, "\n")
		sections[strings.ReplaceAll(title, `\-`, "-")] = strings.ReplaceAll(text, `\-`, "-")
	}
	n := 0
	var look func(verb ...string)
	look = func(verb ...string) {
		text, ok := sections["S drawbridge "+strings.Join(verb, " ")]
		if !ok {
			t.Errorf("drawbridge %s is not there", strings.Join(verb, " "))
		}
		for _, flag := range offered(t, binary, append(slices.Clone(verb), "--")...) {
			if n++; !strings.Contains(text, flag+" ") {
				t.Errorf("drawbridge %s: %s is not there", strings.Join(verb, " "), flag)
			}
		}
		if len(verb) == 1 {
			for _, sub := range offered(t, binary, verb[0], "") {
				look(verb[0], sub)
			}
		}
	}
	for _, verb := range offered(t, binary, "") {
		look(verb)
	}
	if n < 50 {
		t.Errorf("%d flags", n)
	}
	if !strings.HasPrefix(page.String(), `.TH DRAWBRIDGE 1 "2026-11-22" "drawbridge 1.2"`) {
		t.Errorf("it begins with %.80q", page.String())
	}
}
