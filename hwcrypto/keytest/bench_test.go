package keytest

import (
	"crypto/tls"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/file"
	"github.com/drawbridge/drawbridge/hwcrypto/pkcs11"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
)

// BenchmarkHandshake is mutual TLS in one process with both keys in the chip.
func BenchmarkHandshake(b *testing.B) {
	each(b, func(b *testing.B, make func(string, hwcrypto.Algorithm) hwcrypto.Key) {
		ca := NewCA(b)
		server, client := ca.Certificate(b, make("server", hwcrypto.ECDSAP256), "server"), ca.Certificate(b, make("client", hwcrypto.ECDSAP256), "client")
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			b.Run(tls.VersionName(v), func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := ca.Handshake(v, server, client); err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	})
}

// BenchmarkMAC is one HMAC.
func BenchmarkMAC(b *testing.B) {
	each(b, func(b *testing.B, make func(string, hwcrypto.Algorithm) hwcrypto.Key) {
		m := make("mac", hwcrypto.HMACSHA256).(hwcrypto.MACer)
		data := [100]byte{}
		b.Run("100 octets", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := m.MAC(b.Context(), data[:]); err != nil {
						b.Error(err)
					}
				}
			})
		})
	})
}

func each(b *testing.B, f func(*testing.B, func(string, hwcrypto.Algorithm) hwcrypto.Key)) {
	token, chip, dir := SoftHSM(b), SWTPM(b), b.TempDir()
	p11, tpm := pkcs11.New(b.Context(), pkcs11.Options{}), tpm2.New(b.Context(), tpm2.Options{Dir: chip.Dir})
	defer p11.Close()
	defer tpm.Close()
	for _, c := range []struct {
		name string
		p    hwcrypto.Generator
		uri  func(string) string
	}{{"file", file.Provider{}, func(n string) string { return "file:" + dir + "/" + n }}, {"softhsm", p11, token.URI}, {"swtpm", tpm, chip.URI}} {
		b.Run(c.name, func(b *testing.B) {
			f(b, func(name string, alg hwcrypto.Algorithm) hwcrypto.Key {
				u, err := hwcrypto.ParseURI(c.uri(name), "/")
				check(b, err)
				k, err := c.p.Generate(b.Context(), u, alg)
				check(b, err)
				return k
			})
		})
	}
}
