package northtest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// TPMService is the Device Provisioning Service of a Hub as devices with TPM attestation see it, over HTTPS. Its scope is 0ne00000A0A.
type TPMService struct {
	Addr string

	t   testing.TB
	hub *Hub

	mu       sync.Mutex
	enrolled string                   // guarded by mu: the endorsement key, base64
	session  HMAC                     // guarded by mu
	keys     struct{ ek, srk []byte } // guarded by mu: of the TPM that asked
	polls    int                      // guarded by mu
}

// TPMService starts one. Nobody is enrolled.
func (h *Hub) TPMService(t testing.TB) *TPMService {
	t.Helper()
	s := &TPMService{t: t, hub: h}
	server := httptest.NewUnstartedServer(s)
	server.TLS = h.CA.Server(t)
	server.TLS.ClientAuth = tls.NoClientCert
	server.StartTLS()
	t.Cleanup(server.Close)
	s.Addr = server.Listener.Addr().String()
	return s
}

// Enrol makes the TPM with that endorsement key (TPM2B_PUBLIC, base64) registration "gw1".
func (s *TPMService) Enrol(ek string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enrolled = ek
}

func (s *TPMService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.Path, "/0ne00000A0A/registrations/gw1/")
	switch signed := r.Header.Get("Authorization"); {
	case !ok || r.URL.Query().Get("api-version") != "2019-03-31":
		s.say(w, http.StatusNotFound, map[string]any{"errorCode": 404204, "message": "Registration not found"})
	case path == "register" && r.Method == http.MethodPut && signed == "":
		s.challenge(w, r)
	case s.session == nil || !s.hub.signed(s.session, signed, "0ne00000A0A/registrations/gw1", "registration"):
		s.say(w, http.StatusUnauthorized, map[string]any{"errorCode": 401002, "message": "Unauthorized"})
	case path == "register" && r.Method == http.MethodPut:
		w.Header().Set("Retry-After", "0")
		s.say(w, http.StatusAccepted, map[string]any{"operationId": "4.d0a67190.42d78160", "status": "assigning"})
	case path == "operations/4.d0a67190.42d78160" && r.Method == http.MethodGet:
		if s.polls++; s.polls == 1 {
			s.say(w, http.StatusAccepted, map[string]any{"operationId": "4.d0a67190.42d78160", "status": "assigning"})
			return
		}
		s.say(w, http.StatusOK, map[string]any{"operationId": "4.d0a67190.42d78160", "status": "assigned", "registrationState": map[string]any{
			"registrationId": "gw1", "assignedHub": strings.Replace(s.hub.Addr, "127.0.0.1", "localhost", 1), "deviceId": "gw1", "status": "assigned",
			"tpm": map[string]string{"authenticationKey": s.credential(s.hub.Key)},
		}})
	default:
		s.say(w, http.StatusMethodNotAllowed, map[string]any{})
	}
}

// challenge sends the key of a session to the TPM that is enrolled.
func (s *TPMService) challenge(w http.ResponseWriter, r *http.Request) {
	var request struct {
		ID  string `json:"registrationId"`
		TPM struct{ EndorsementKey, StorageRootKey string }
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.ID != "gw1" || request.TPM.EndorsementKey != s.enrolled {
		s.say(w, http.StatusUnauthorized, map[string]any{"errorCode": 401000, "message": fmt.Sprintf("Enrollment not found: %v", err)})
		return
	}
	var err1, err2 error
	s.keys.ek, err1 = base64.StdEncoding.DecodeString(request.TPM.EndorsementKey)
	s.keys.srk, err2 = base64.StdEncoding.DecodeString(request.TPM.StorageRootKey)
	if err1 != nil || err2 != nil {
		s.say(w, http.StatusBadRequest, map[string]any{"message": "keys"})
		return
	}
	s.session = make(HMAC, 32)
	rand.Read(s.session)
	s.say(w, http.StatusUnauthorized, map[string]any{"message": "Authorization required", "keyName": "registration", "authenticationKey": s.credential(s.session)})
}

func (s *TPMService) credential(key HMAC) string {
	return base64.StdEncoding.EncodeToString(keytest.Credential(s.t, s.keys.ek, s.keys.srk, key))
}

func (s *TPMService) say(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}
