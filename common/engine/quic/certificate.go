package quic

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"sync"

	"turbotunnel/common/engine"
)

var errCertificate = errors.New("quic: the other side is not the one at the other end of the sealed session")

// tlsConfig returns what both sides use: a certificate of the key that is
// derived from pc's binding, and the demand that the other side has the same
// key. It reads the binding when the other side has spoken, as a client's
// carrier has none before.
func tlsConfig(pc engine.Carrier) *tls.Config {
	own := sync.OnceValues(func() (*tls.Certificate, error) {
		seed, err := hkdf.Key(sha256.New, pc.Binding(), nil, "turbotunnel engine quic key", ed25519.SeedSize)
		if err != nil {
			return nil, err
		}
		key := ed25519.NewKeyFromSeed(seed)
		nothing := &x509.Certificate{SerialNumber: big.NewInt(1)}
		der, err := x509.CreateCertificate(rand.Reader, nothing, nothing, key.Public(), key)
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
	})
	return &tls.Config{
		NextProtos:             []string{"turbotunnel"},
		CurvePreferences:       []tls.CurveID{tls.X25519}, // what seals the session; a larger key would not fit into one packet
		SessionTicketsDisabled: true,

		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own() },
		ClientAuth:           tls.RequireAnyClientCert,
		InsecureSkipVerify:   true, // no name, issuer or date counts, but see VerifyConnection
		VerifyConnection: func(state tls.ConnectionState) error {
			c, err := own()
			if err == nil && !c.PrivateKey.(ed25519.PrivateKey).Public().(ed25519.PublicKey).Equal(state.PeerCertificates[0].PublicKey) {
				err = errCertificate
			}
			return err
		},
	}
}
