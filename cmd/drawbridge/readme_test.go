package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The README stays short, says why each dependency is there, and names verbs that exist.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(readme)
	if n := strings.Count(text, "\n"); n > 200 {
		t.Errorf("it has %d lines", n)
	}
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(mod), -1) {
		if !strings.Contains(text, "`"+m[1]+"`") {
			t.Errorf("it does not say why %s is needed", m[1])
		}
	}
	verbs := map[string]bool{}
	for _, c := range (&app{}).command().Commands() {
		verbs[c.Name()] = true
	}
	for _, m := range regexp.MustCompile("(?:`|    |&& )drawbridge ([a-z]+)").FindAllStringSubmatch(text, -1) {
		if !verbs[m[1]] {
			t.Errorf("it names the verb %q, which does not exist", m[1])
		}
	}
}
