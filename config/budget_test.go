package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
)

func TestBudgetOfAConnector(t *testing.T) {
	type own struct {
		URL string `toml:"url"`
	}
	kinds := config.Kinds{
		Listeners:  map[string]func() any{"l": func() any { return &own{} }},
		Connectors: map[string]func() any{"c": func() any { return &own{} }},
	}
	const head = "[gateway]\nid = \"gw\"\n[connector.cloud]\ntype = \"c\"\nurl = \"u\"\n"
	cfg, err := config.Parse("f.toml", []byte(head+"[connector.cloud.budget]\nday = \"2MiB\"\nmonth = \"1GiB\"\nlinger = \"5s\"\n"), kinds)
	if err != nil {
		t.Fatal(err)
	}
	if b := cfg.Connectors["cloud"].Budget; b != (config.Budget{Day: 2 << 20, Month: 1 << 30, Linger: config.Duration(5 * time.Second)}) {
		t.Errorf("%+v", b)
	}
	for text, want := range map[string]string{
		head + "[connector.cloud.budget]\nmonht = \"1GiB\"\n":                                       `f.toml:7:1: unknown key "monht" in [connector.cloud.budget] (did you mean "month"?)`,
		head + "[connector.cloud.budget]\nlinger = \"2h\"\n":                                        `f.toml:7:10: budget.linger: from "0s" to "1h"`,
		head + "budget = \"1GiB\"\n":                                                                `unknown key "budget" in [connector.cloud]`,
		"[gateway]\nid = \"gw\"\n[listener.l]\ntype = \"l\"\n[listener.l.budget]\nday = \"1MiB\"\n": `unknown key "budget" in [listener.l]`,
	} {
		if _, err := config.Parse("f.toml", []byte(text), kinds); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}
