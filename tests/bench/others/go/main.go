// POST /v1/tokens as one would write it with Go's standard library alone: an API key, the request's fields
// checked, a token of Amazon IVS signed with ES384. No ledger, no policy, no bans, no key rotation.
// https://pkg.go.dev/net/http, https://pkg.go.dev/crypto/ecdsa; RFC 7515, RFC 7518 section 3.4.
package main

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

const maxBody = 32768

type wanted struct {
	StageArn     string            `json:"stageArn"`
	UserId       string            `json:"userId,omitempty"`
	Duration     int64             `json:"duration"`
	Capabilities []string          `json:"capabilities"`
	Attributes   map[string]string `json:"attributes"`
}

type issued struct {
	wanted
	Token          string `json:"token"`
	ParticipantId  string `json:"participantId"`
	ExpirationTime string `json:"expirationTime"`
}

type claims struct {
	Exp          int64             `json:"exp"`
	Iat          int64             `json:"iat"`
	Jti          string            `json:"jti"`
	Resource     string            `json:"resource"`
	Topic        string            `json:"topic"`
	EventsUrl    string            `json:"events_url"`
	WhipUrl      string            `json:"whip_url"`
	Capabilities map[string]bool   `json:"capabilities"`
	Attributes   map[string]string `json:"attributes"`
	Version      string            `json:"version"`
	UserId       string            `json:"user_id,omitempty"`
}

var claimOf = map[string]string{"PUBLISH": "allow_publish", "SUBSCRIBE": "allow_subscribe"}

type mint struct {
	key                *ecdsa.PrivateKey
	header             string
	eventsUrl, whipUrl string
	authorization      []byte
}

func (m *mint) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	if request.Method != http.MethodPost {
		http.Error(response, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if subtle.ConstantTimeCompare([]byte(request.Header.Get("Authorization")), m.authorization) != 1 {
		http.Error(response, "unauthorized", http.StatusUnauthorized)
		return
	}
	asked := wanted{Duration: 720, Capabilities: []string{"PUBLISH", "SUBSCRIBE"}, Attributes: map[string]string{}}
	if err := json.NewDecoder(http.MaxBytesReader(response, request.Body, maxBody)).Decode(&asked); err != nil {
		http.Error(response, "not JSON", http.StatusBadRequest)
		return
	}
	_, topic, found := strings.Cut(asked.StageArn, ":stage/")
	capabilities := map[string]bool{}
	for _, name := range asked.Capabilities {
		claim, known := claimOf[name]
		found = found && known
		capabilities[claim] = true
	}
	if !found || utf8.RuneCountInString(asked.UserId) > 128 || asked.Duration < 1 || asked.Duration > 20160 {
		http.Error(response, "not valid", http.StatusBadRequest)
		return
	}
	random := make([]byte, 15)
	if _, err := rand.Read(random); err != nil {
		http.Error(response, "no randomness", http.StatusInternalServerError)
		return
	}
	id := base64.RawURLEncoding.EncodeToString(random)
	now := time.Now().Unix()
	exp := now + asked.Duration*60
	token, err := m.sign(claims{
		exp, now, id, asked.StageArn, topic, m.eventsUrl, m.whipUrl, capabilities, asked.Attributes, "1.0", asked.UserId,
	})
	if err != nil {
		http.Error(response, "not signed", http.StatusInternalServerError)
		return
	}
	response.Header().Set("Content-Type", "application/json")
	json.NewEncoder(response).Encode(issued{asked, token, id, time.Unix(exp, 0).UTC().Format(time.RFC3339)})
}

func (m *mint) sign(payload claims) (string, error) {
	encoded, err := json.Marshal(payload)
	if err != nil {
		return "", err
	}
	input := m.header + "." + base64.RawURLEncoding.EncodeToString(encoded)
	digest := sha512.Sum384([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, m.key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 96)
	r.FillBytes(signature[:48])
	s.FillBytes(signature[48:])
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func main() {
	text, err := os.ReadFile(os.Getenv("KEY_FILE"))
	if err != nil {
		log.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		log.Fatal("KEY_FILE is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		log.Fatal(err)
	}
	header, err := json.Marshal(map[string]string{"alg": "ES384", "typ": "JWT", "kid": os.Getenv("KEY_ARN")})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/v1/tokens", &mint{
		key.(*ecdsa.PrivateKey),
		base64.RawURLEncoding.EncodeToString(header),
		os.Getenv("EVENTS_URL"), os.Getenv("WHIP_URL"),
		[]byte("Bearer " + os.Getenv("API_KEY")),
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
