package auth

import (
	"bytes"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
)

// What a stranger sends as a token is read before anything is believed.
func FuzzIssuerOf(f *testing.F) {
	f.Add("eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUifQ.c2ln")
	f.Add("a.b.c")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		if issuer, ok := issuerOf(token); ok && issuer != "" && strings.Count(token, ".") < 2 {
			t.Errorf("%q names %q", token, issuer)
		}
	})
}

// A file with a hash that is cut off or changed is an error or a no, and takes no more than the bounds allow.
func FuzzVerifyHash(f *testing.F) {
	f.Add([]byte("$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$iWh06vD8Fy27wf9npn6FXWiCX4K6pW6Ue1Bnzz07Z8A"))
	f.Add([]byte("$argon2id$v=19$m=8,t=1,p=255$c29tZXNhbHQ$AAAA"))
	f.Add([]byte("$2y$04$abcdefghijklmnopqrstuuAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"))
	f.Fuzz(func(t *testing.T, stored []byte) {
		if !hashed(stored) || costly(stored) {
			return
		}
		if ok, err := verifyHash(stored, []byte("a password that nobody has hashed")); ok && err == nil {
			t.Errorf("%q is taken", stored)
		}
	})
}

// costly tells whether the hash may honestly ask for more work than a fuzzer should wait for.
func costly(stored []byte) bool {
	if bytes.HasPrefix(stored, []byte("$2")) {
		return len(stored) > 6 && !bytes.Equal(stored[4:6], []byte("04"))
	}
	for _, cheap := range []string{"m=8,t=1,p=1$", "m=8,t=1,p=255$", "m=8,t=0,", "m=8,t=1,p=0"} {
		if bytes.Contains(stored, []byte(cheap)) {
			return false
		}
	}
	return true
}

func FuzzRules(f *testing.F) {
	f.Add("/a/{x...}", "/a/b/c", "a/+/#")
	f.Add("/{device}/x", "/d1/x", "+/x")
	f.Fuzz(func(t *testing.T, pattern, resource, filter string) {
		r, err := config.ParsePattern(pattern)
		if err != nil || filter != "" && config.CheckFilter(filter) != nil {
			return
		}
		// A resource that the pattern takes, and whose topic the filter matches, is one that they have in common.
		if matches(r, "d1", resource) && filter != "" && topicMatches(filter, resource[1:]) && !strings.HasPrefix(resource, "/$") && !meets(r, "d1", filter) {
			t.Errorf("%q takes %q and %q matches its topic, yet they have nothing in common", pattern, resource, filter)
		}
	})
}
