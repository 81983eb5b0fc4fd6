package mqtt

import (
	"bufio"
	"bytes"
	"testing"
)

// FuzzPackets feeds what a broker could send to both codecs. They must not panic, take more than the limit, or read beyond a packet.
func FuzzPackets(f *testing.F) {
	for _, seed := range []string{
		"\x20\x03\x00\x00\x00", "\x20\x02\x00\x00", // CONNACK
		"\x20\x09\x00\x00\x06\x21\x00\x14\x22\x00\x0a", // receive maximum 20, topic alias maximum 10
		"\x40\x02\x00\x01", "\x40\x04\x00\x01\x97\x00", // PUBACK
		"\x32\x0a\x00\x03a/b\x00\x07\x00{}", "\x30\x05\x00\x01ax", // PUBLISH
		"\x90\x04\x00\x01\x00\x01", "\x90\x03\x00\x01\x80", // SUBACK
		"\xd0\x00", "\xe0\x00", "\xe0\x02\x8e\x00", // PINGRESP, DISCONNECT
		"\xf0\x0d\x18\x0b\x15\x00\x08K8S-SAT\x00", // AUTH
		"\x50\x02\x00\x01\x70\x02\x00\x01", "\x62\x02\x00\x01",
		"\x30\xff\xff\xff\xff\x01",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1 << 16
		for _, version := range []byte{V5, V311} {
			r := bufio.NewReader(bytes.NewReader(data))
			for {
				first, body, err := readFrame(r, limit, make([]byte, 64))
				if err != nil {
					break
				}
				if len(body) > limit {
					t.Fatalf("a body of %d octets", len(body))
				}
				p, err := codecOf(version).decode(first, body)
				if err == nil && p == nil {
					t.Fatal("neither packet nor error")
				}
			}
		}
	})
}
