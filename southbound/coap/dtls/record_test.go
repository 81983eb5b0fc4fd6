package dtls

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/RyuaNerin/go-krypto/aria"
)

// pair makes both ends of an association. The second one is the client's.
func pair(t *testing.T, s *Suite, cid bool) (server, client *Conn) {
	t.Helper()
	m, k, v := s.macLen, s.keyLen, s.ivLen
	keys := make([]byte, 2*(m+k+v))
	for i := range keys {
		keys[i] = byte(i * 7)
	}
	swap := func(n int) []byte {
		b := append(bytes.Clone(keys[n:2*n]), keys[:n]...)
		keys = keys[2*n:]
		return b
	}
	a := State{Suite: s.ID, Keys: bytes.Clone(keys)}
	b := State{Suite: s.ID, Keys: append(append(swap(m), swap(k)...), swap(v)...)}
	if cid {
		a.CID, a.OutCID = []byte("12345678"), []byte("abcdefgh")
		b.CID, b.OutCID = a.OutCID, a.CID
	}
	for state, conn := range map[*State]**Conn{&a: &server, &b: &client} {
		c, err := Restore(*state, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.Reserve(1 << 40)
		*conn = c
	}
	return server, client
}

func record(t *testing.T, b []byte) Record {
	t.Helper()
	r, rest, ok := NextRecord(b)
	if !ok || len(rest) > 0 {
		t.Fatalf("%x is not one record", b)
	}
	return r
}

func TestRecordsOfEverySuite(t *testing.T) {
	for _, s := range Suites() {
		for _, cid := range []bool{false, true} {
			t.Run(s.Name+map[bool]string{true: " with connection id"}[cid], func(t *testing.T) {
				server, client := pair(t, s, cid)
				for _, payload := range []string{"", "x", "0123456789abcde", "0123456789abcdef", string(make([]byte, 1200))} {
					sealed, err := client.Seal([]byte("before"), TypeApplication, []byte(payload))
					if err != nil {
						t.Fatal(err)
					}
					sealed = sealed[len("before"):]
					if n := len(sealed) - len(payload); n > Overhead+CIDLen {
						t.Errorf("overhead of %d", n)
					}
					for i := range sealed {
						forged := bytes.Clone(sealed)
						forged[i] ^= 1
						if r, _, ok := NextRecord(forged); ok {
							if _, _, _, err := server.Open(r); err == nil {
								t.Fatalf("octet %d of %d may be changed", i, len(sealed))
							}
						}
						if len(payload) > 100 {
							break
						}
					}
					typ, got, newest, err := server.Open(record(t, bytes.Clone(sealed)))
					if err != nil || typ != TypeApplication || string(got) != payload || !newest {
						t.Fatalf("%d %q %v %v", typ, got, newest, err)
					}
					if _, _, _, err := server.Open(record(t, sealed)); !errors.Is(err, ErrReplayed) {
						t.Errorf("a replay: %v", err)
					}
				}
			})
		}
	}
}

func TestReplayWindow(t *testing.T) {
	server, client := pair(t, SuiteByName("TLS_PSK_WITH_AES_128_GCM_SHA256"), true)
	var sealed [200][]byte
	for i := range sealed {
		sealed[i], _ = client.Seal(nil, TypeApplication, []byte{byte(i)})
	}
	open := func(i int) (bool, error) {
		_, _, newest, err := server.Open(record(t, bytes.Clone(sealed[i])))
		return newest, err
	}
	for _, step := range []struct {
		i      int
		newest bool
		err    error
	}{{10, true, nil}, {5, false, nil}, {5, false, ErrReplayed}, {100, true, nil}, {37, false, nil}, {36, false, ErrReplayed}, {10, false, ErrReplayed},
		{99, false, nil}, {199, true, nil}, {100, false, ErrReplayed}, {136, false, nil}, {135, false, ErrReplayed}} {
		if newest, err := open(step.i); newest != step.newest || !errors.Is(err, step.err) {
			t.Errorf("record %d: newest %v, %v; want %v, %v", step.i, newest, err, step.newest, step.err)
		}
	}
	// Restored, all up to the highest counts as seen.
	again, err := Restore(server.State(), server.Sent(), server.Received())
	if err != nil {
		t.Fatal(err)
	}
	server = again
	for i := range sealed {
		if _, err := open(i); !errors.Is(err, ErrReplayed) {
			t.Errorf("after a restore record %d: %v", i, err)
		}
	}
	next, _ := client.Seal(nil, TypeApplication, nil)
	if _, _, newest, err := server.Open(record(t, next)); err != nil || !newest {
		t.Errorf("after a restore the next: %v, %v", newest, err)
	}
}

func TestNoSequenceNumberBeyondWhatIsReserved(t *testing.T) {
	server, _ := pair(t, SuiteByName("TLS_PSK_WITH_AES_128_GCM_SHA256"), false)
	server.Reserve(3)
	for i := range 4 {
		if _, err := server.Seal(nil, TypeApplication, nil); (err != nil) != (i >= 2) || i >= 2 && !errors.Is(err, ErrExhausted) {
			t.Errorf("record %d: %v", i, err)
		}
	}
	server.Reserve(1 << 60)
	server.out.seq = maxSeq
	if _, err := server.Seal(nil, TypeApplication, nil); !errors.Is(err, ErrExhausted) {
		t.Errorf("the last number: %v", err)
	}
}

// RFC 5794 appendix A.
func TestARIAVectors(t *testing.T) {
	plain, _ := hex.DecodeString("00112233445566778899aabbccddeeff")
	for key, want := range map[string]string{
		"000102030405060708090a0b0c0d0e0f":                                 "d718fbd6ab644c739da95f3be6451778",
		"000102030405060708090a0b0c0d0e0f1011121314151617":                 "26449c1805dbe7aa25a468ce263a9e79",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f": "f92bd7c79fb72e2f2b8f80c1972d24fc",
	} {
		k, _ := hex.DecodeString(key)
		c, err := aria.NewCipher(k)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 16)
		c.Encrypt(got, plain)
		if hex.EncodeToString(got) != want {
			t.Errorf("ARIA-%d: %x", 8*len(k), got)
		}
	}
}
