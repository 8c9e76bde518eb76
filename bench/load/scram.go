package load

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
)

// gs2 says that the client does no channel binding.
const gs2 = "n,,"

// scram is one SCRAM-SHA-256 exchange (RFC 5802, RFC 7677) of a client.
type scram struct {
	first  []byte // client-first-message-bare
	server []byte // the signature that the server must prove
}

// scramKeys remembers salted passwords, so that what is measured is the server's work. It belongs to one loop.
type scramKeys map[string][]byte

func (c *scram) begin() []byte {
	nonce := make([]byte, 18)
	// rand.Read never fails.
	_, _ = rand.Read(nonce)
	c.first = []byte("n=,r=" + base64.StdEncoding.EncodeToString(nonce))
	return append([]byte(gs2), c.first...)
}

// proceed answers the server's first message.
func (c *scram) proceed(keys scramKeys, user, password string, challenge []byte) ([]byte, error) {
	var nonce, salt64 []byte
	iterations := 0
	for field := range bytes.SplitSeq(challenge, []byte{','}) {
		switch {
		case bytes.HasPrefix(field, []byte("r=")):
			nonce = field[2:]
		case bytes.HasPrefix(field, []byte("s=")):
			salt64 = field[2:]
		case bytes.HasPrefix(field, []byte("i=")):
			iterations, _ = strconv.Atoi(string(field[2:]))
		}
	}
	salt, err := base64.StdEncoding.DecodeString(string(salt64))
	if err != nil || iterations < 1 || iterations > 1_000_000 || !bytes.HasPrefix(nonce, c.first[len("n=,r="):]) {
		return nil, fmt.Errorf("SCRAM: a challenge that is none: %q", challenge)
	}
	id := user + "\x00" + string(salt) + "\x00" + strconv.Itoa(iterations)
	salted := keys[id]
	if salted == nil {
		if salted, err = pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size); err != nil {
			return nil, fmt.Errorf("SCRAM: %w", err)
		}
		keys[id] = salted
	}
	final := []byte("c=" + base64.StdEncoding.EncodeToString([]byte(gs2)) + ",r=" + string(nonce))
	auth := bytes.Join([][]byte{c.first, challenge, final}, []byte{','})
	clientKey := mac(salted, []byte("Client Key"))
	stored := sha256.Sum256(clientKey)
	proof := mac(stored[:], auth)
	subtle.XORBytes(proof, proof, clientKey)
	c.server = mac(mac(salted, []byte("Server Key")), auth)
	return append(final, ",p="+base64.StdEncoding.EncodeToString(proof)...), nil
}

// finish checks the server's signature.
func (c *scram) finish(outcome []byte) error {
	value, ok := bytes.CutPrefix(outcome, []byte("v="))
	signature, err := base64.StdEncoding.DecodeString(string(value))
	if !ok || err != nil || c.server == nil || !hmac.Equal(signature, c.server) {
		return errors.New("SCRAM: the server does not know the password")
	}
	return nil
}

func mac(key, data []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(data)
	return h.Sum(nil)
}
