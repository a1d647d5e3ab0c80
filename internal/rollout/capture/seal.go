package capture

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// KeyEnv is the environment variable that may hold the key.
const KeyEnv = "FEWBIT_CAPTURE_KEY"

// keyBytes is the length of a key: AES-256.
const keyBytes = 32

// maxKeyText bounds the text of a key.
const maxKeyText = 1024

// Key encrypts captured inputs. Each capture has a key of its own, derived with
// a random salt, so that random nonces never come near their limit
// (NIST SP 800-38D, section 8.3: 2^32 messages under one key).
type Key struct {
	secret []byte
	id     string
}

// ParseKey reads a key: 32 bytes as base64 or as hexadecimal digits, white space
// around them ignored. The error never quotes it.
func ParseKey(text []byte) (*Key, error) {
	text = bytes.TrimSpace(text)
	var secret []byte
	var err error
	if len(text) == 2*keyBytes {
		secret, err = hex.DecodeString(string(text))
	} else if len(text) <= maxKeyText {
		secret, err = base64.StdEncoding.DecodeString(string(text))
	}
	if err != nil || len(secret) != keyBytes {
		return nil, fmt.Errorf("%w: expected %d random bytes as base64, for example from: head -c %d /dev/urandom | base64", ErrKey, keyBytes, keyBytes)
	}
	id, err := hkdf.Key(sha256.New, secret, nil, "fewbit capture key id", 8)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Key{secret: secret, id: hex.EncodeToString(id)}, nil
}

// ID names the key without telling anything of it.
func (k *Key) ID() string { return k.id }

// saltBytes is the length of a capture's salt.
const saltBytes = 32

// box seals the samples of one capture.
type box struct{ aead cipher.AEAD }

// box returns the one of the capture with that salt.
func (k *Key) box(salt []byte) (*box, error) {
	key, err := hkdf.Key(sha256.New, k.secret, salt, "fewbit captured inputs 1", keyBytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &box{aead}, nil
}

// What a sealed message may stand for: one cannot be passed off as another.
const (
	sealSample = "sample"
	sealEnd    = "end"
)

func (b *box) seal(dst, plain []byte, what string) []byte {
	return b.aead.Seal(dst, nil, plain, []byte(what))
}

// open returns what was sealed, or ErrFormat.
func (b *box) open(sealed []byte, what string) ([]byte, error) {
	plain, err := b.aead.Open(nil, nil, sealed, []byte(what))
	if err != nil {
		return nil, fmt.Errorf("%w: it was changed, cut off, or sealed with another key", ErrFormat)
	}
	return plain, nil
}

// overhead is what sealing adds: a nonce of 12 bytes and a tag of 16.
func (b *box) overhead() int { return b.aead.Overhead() }
