package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// credentials are temporary keys of a role. They are never logged.
type credentials struct {
	accessKey, secret, session string
	expires                    time.Time
}

const service = "iotdevicegateway"

// presign makes the URL of the WebSocket handshake: Signature Version 4 in the query. The session token
// is added after signing, which is this service's own way: it is not signed.
func presign(host, region string, c credentials, now time.Time, valid time.Duration) *url.URL {
	date := now.UTC().Format("20060102T150405Z")
	scope := date[:8] + "/" + region + "/" + service + "/aws4_request"
	query := "X-Amz-Algorithm=AWS4-HMAC-SHA256" +
		"&X-Amz-Credential=" + escape(c.accessKey+"/"+scope) +
		"&X-Amz-Date=" + date +
		"&X-Amz-Expires=" + strconv.Itoa(int(valid/time.Second)) +
		"&X-Amz-SignedHeaders=host"
	canonical := "GET\n/mqtt\n" + query + "\nhost:" + host + "\n\nhost\n" + hexSum("")
	toSign := "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + hexSum(canonical)
	key := []byte("AWS4" + c.secret)
	for _, part := range []string{date[:8], region, service, "aws4_request", toSign} {
		key = mac(key, part)
	}
	query += "&X-Amz-Signature=" + hex.EncodeToString(key)
	if c.session != "" {
		query += "&X-Amz-Security-Token=" + escape(c.session)
	}
	return &url.URL{Scheme: "wss", Host: host, Path: "/mqtt", RawQuery: query}
}

func mac(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	return h.Sum(nil)
}

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// escape is RFC 3986's: url.QueryEscape writes a space as "+".
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
