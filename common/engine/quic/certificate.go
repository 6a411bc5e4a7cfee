package quic

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"turbotunnel/common/engine"
)

// keyLabel goes into the key that is derived from a binding.
const keyLabel = "turbotunnel engine quic key"

var errCertificate = errors.New("quic: the other side is not the one at the other end of the sealed session")

// epoch is the time for TLS. No clock decides anything.
var epoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC)

// tlsConfig returns what both sides use: a certificate of the key that is
// derived from pc's binding, and the demand that the other side has the same
// key. It reads the binding when the other side has spoken, as a client's
// carrier has none before.
func tlsConfig(pc engine.Carrier) *tls.Config {
	certificate := func() (*tls.Certificate, error) {
		key, err := bindingKey(pc)
		if err != nil {
			return nil, err
		}
		return newCertificate(key)
	}
	return &tls.Config{
		NextProtos:             []string{"turbotunnel"},
		Time:                   func() time.Time { return epoch },
		CurvePreferences:       []tls.CurveID{tls.X25519}, // what seals the session; a larger key would not fit into one packet
		SessionTicketsDisabled: true,

		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate() },
		ClientAuth:           tls.RequireAnyClientCert,
		InsecureSkipVerify:   true, // no name or issuer counts, but see VerifyConnection
		VerifyConnection: func(state tls.ConnectionState) error {
			key, err := bindingKey(pc)
			if err != nil {
				return err
			}
			if len(state.PeerCertificates) == 0 || !key.Public().(ed25519.PublicKey).Equal(state.PeerCertificates[0].PublicKey) {
				return errCertificate
			}
			return nil
		},
	}
}

// bindingKey derives the key of both sides from pc's binding.
func bindingKey(pc engine.Carrier) (ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, pc.Binding(), nil, keyLabel, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("quic: deriving the certificate's key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// newCertificate returns a certificate of key that says nothing else.
func newCertificate(key ed25519.PrivateKey) (*tls.Certificate, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: epoch, NotAfter: epoch.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("quic: making the certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
