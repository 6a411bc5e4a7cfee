package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// A certificate is a pair of files that is read again when one of them has
// changed. It looks at each handshake, which costs two calls of stat beside
// the handshake's milliseconds. Safe for concurrent use.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex // guards what follows
	seen    [2]version // of the files, at the last attempt to load them
	current *tls.Certificate
}

// version tells whether a file has changed. The zero value is one that cannot
// be looked at.
type version struct {
	info os.FileInfo
}

func versionOf(path string) version {
	info, err := os.Stat(path)
	if err != nil {
		return version{}
	}
	return version{info}
}

func (v version) same(w version) bool {
	if v.info == nil || w.info == nil {
		return v.info == w.info
	}
	return os.SameFile(v.info, w.info) && v.info.Size() == w.info.Size() && v.info.ModTime().Equal(w.info.ModTime())
}

// newCertificate reads a pair of PEM files.
func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	c.seen = [2]version{versionOf(certFile), versionOf(keyFile)}
	if err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("cannot use the TLS certificate %s with the key %s: %w", c.certFile, c.keyFile, err)
	}
	c.current = &pair
	if now := time.Now(); now.After(pair.Leaf.NotAfter) {
		c.log.Warn("the TLS certificate has expired: clients will refuse it", "file", c.certFile, "expired", pair.Leaf.NotAfter)
	} else if now.Before(pair.Leaf.NotBefore) {
		c.log.Warn("the TLS certificate is not valid yet: clients will refuse it", "file", c.certFile, "from", pair.Leaf.NotBefore)
	}
	return nil
}

// tlsConfig is that of a server that uses the certificate.
func (c *certificate) tlsConfig() *tls.Config {
	return &tls.Config{
		GetCertificate: c.get,
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
	}
}

// get is a tls.Config's GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := [2]version{versionOf(c.certFile), versionOf(c.keyFile)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !now[0].same(c.seen[0]) || !now[1].same(c.seen[1]) {
		c.renew(now)
	}
	return c.current, nil
}

// reread reads the files again, whether they have changed or not.
func (c *certificate) reread() {
	now := [2]version{versionOf(c.certFile), versionOf(c.keyFile)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renew(now)
}

// renew reads the files, as they are now. mu is held.
func (c *certificate) renew(now [2]version) {
	c.seen = now
	if err := c.load(); err != nil {
		// One file is written before the other: the change of the second is
		// the next attempt.
		c.log.Warn("the TLS certificate has changed and cannot be used: the old one stays", "err", err)
	} else {
		c.log.Info("the TLS certificate was read again and is in use", "until", c.current.Leaf.NotAfter)
	}
}
