package hwcrypto

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
)

// DecodeSecret reads what a secret's file holds: octets as they are, or text after "hex:" or "base64:".
// One trailing newline is ignored. The result may share memory with b.
func DecodeSecret(b []byte) ([]byte, error) {
	b = TrimNewline(b)
	// The errors of the decoders quote what they read, so they are not passed on.
	if t, ok := bytes.CutPrefix(b, []byte("hex:")); ok {
		out := make([]byte, hex.DecodedLen(len(t)))
		if _, err := hex.Decode(out, t); err != nil {
			return nil, errors.New("secret: what follows hex: is not hexadecimal")
		}
		b = out
	} else if t, ok := bytes.CutPrefix(b, []byte("base64:")); ok {
		out := make([]byte, base64.StdEncoding.DecodedLen(len(t)))
		n, err := base64.StdEncoding.Strict().Decode(out, t)
		if err != nil {
			return nil, errors.New("secret: what follows base64: is not base64 with padding")
		}
		b = out[:n]
	}
	if len(b) == 0 {
		return nil, errors.New("secret: empty")
	}
	return b, nil
}

// TrimNewline cuts one newline (LF or CR LF) from the end.
func TrimNewline(b []byte) []byte {
	if t, ok := bytes.CutSuffix(b, []byte("\n")); ok {
		return bytes.TrimSuffix(t, []byte("\r"))
	}
	return b
}
