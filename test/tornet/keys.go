package tornet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// An authorityKey is a folder with the keys and certificate of a directory
// authority, and the authority's name in DirAuthority lines.
type authorityKey struct {
	dir     string
	v3ident string
}

const (
	certificateFile = "authority_certificate"

	// certMonths is how long a certificate is valid, and certSpare how much
	// of that must be left for it to be used.
	certMonths = 12
	certSpare  = 24 * time.Hour
)

// authorityKeys returns n keys. tor-gencert takes seconds for one, so they are
// kept in the user's cache folder, where every network reads them and none
// writes to them. A user without one has them made in dir, for this network.
func authorityKeys(ctx context.Context, dir string, n int) ([]authorityKey, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = dir
	}
	cache = filepath.Join(cache, "turbotunnel-tornet")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, err
	}
	keys := make([]authorityKey, n)
	errs := make([]error, n)
	var making sync.WaitGroup
	for i := range keys {
		making.Go(func() {
			keys[i], errs[i] = cachedKey(ctx, cache, fmt.Sprintf("authority%d", i+1))
		})
	}
	making.Wait()
	return keys, errors.Join(errs...)
}

// cachedKey reads the key name from the cache, or makes it there.
func cachedKey(ctx context.Context, cache, name string) (authorityKey, error) {
	final := filepath.Join(cache, name)
	if key, err := readKey(final); err == nil {
		return key, nil
	}
	fresh, err := os.MkdirTemp(cache, name+".")
	if err != nil {
		return authorityKey{}, err
	}
	defer os.RemoveAll(fresh)
	cmd := exec.CommandContext(ctx, "tor-gencert", "--create-identity-key", "--passphrase-fd", "0",
		"-m", fmt.Sprint(certMonths),
		"-i", filepath.Join(fresh, "authority_identity_key"),
		"-s", filepath.Join(fresh, "authority_signing_key"),
		"-c", filepath.Join(fresh, certificateFile))
	// The identity key is encrypted by a passphrase that guards nothing: the
	// network is this machine's own.
	cmd.Stdin = strings.NewReader("turbotunnel\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return authorityKey{}, fmt.Errorf("tor-gencert: %w\n%s", err, out)
	}
	if _, err := readKey(fresh); err != nil {
		return authorityKey{}, err
	}
	// Another network may do the same now, or hold the old key open: only one
	// rename onto an empty name succeeds, and the winner's key is used.
	old, err := os.MkdirTemp(cache, name+".old.")
	if err != nil {
		return authorityKey{}, err
	}
	defer os.RemoveAll(old)
	if _, err := readKey(final); err != nil {
		if err := os.Rename(final, filepath.Join(old, "key")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return authorityKey{}, err
		}
		if err := os.Rename(fresh, final); err != nil && !errors.Is(err, os.ErrExist) {
			return authorityKey{}, err
		}
	}
	return readKey(final)
}

// readKey reads the certificate of the key in dir, and refuses one that is
// about to expire or is not yet valid.
func readKey(dir string) (authorityKey, error) {
	key := authorityKey{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, certificateFile))
	if err != nil {
		return key, err
	}
	var published, expires time.Time
	for line := range bytes.Lines(text) {
		word, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		switch word {
		case "fingerprint":
			key.v3ident = value
		case "dir-key-published":
			published, err = time.Parse(time.DateTime, value)
		case "dir-key-expires":
			expires, err = time.Parse(time.DateTime, value)
		}
		if err != nil {
			return key, fmt.Errorf("%s: %w", certificateFile, err)
		}
	}
	now := time.Now()
	if key.v3ident == "" || now.Before(published) || now.Add(certSpare).After(expires) {
		return key, fmt.Errorf("%s of %q is not valid from %v to %v", certificateFile, key.v3ident, published, expires)
	}
	return key, nil
}

// fingerprint makes a relay's identity key in its data folder and returns its
// fingerprint.
func fingerprint(ctx context.Context, dir string) (string, error) {
	cmd := exec.CommandContext(ctx, "tor", "-f", filepath.Join(dir, noDefaults), "--defaults-torrc", filepath.Join(dir, noDefaults),
		"--DataDirectory", dir, "--ORPort", "1", "--SocksPort", "0", "--quiet", "--list-fingerprint")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("tor --list-fingerprint: %w\n%s", err, out)
	}
	// nickname fingerprint
	text, err := os.ReadFile(filepath.Join(dir, "fingerprint"))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(text))
	if len(fields) != 2 {
		return "", fmt.Errorf("fingerprint file holds %q", text)
	}
	return fields[1], nil
}
