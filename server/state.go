package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"turbotunnel/common/ptproc"
	"turbotunnel/common/tunnel"
)

const (
	keyFile        = "turbo_key"
	bridgeLineFile = "turbo_bridgeline.txt"
	clockFile      = "turbo_clock"

	// stateFileMax is more bytes than any file has that is read.
	stateFileMax = 4 << 10
)

// loadKey returns the server's key, which the folder dir holds. On first start
// it makes both. A key that is there and cannot be used is an error, never
// replaced: clients know the server by it.
func loadKey(dir string) (*tunnel.Key, error) {
	if err := ptproc.MakeStateDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, keyFile)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(dir, path); err != nil {
			return nil, fmt.Errorf("cannot make the server's key %s: %w", path, err)
		}
	}
	key, err := readKey(path)
	if err != nil {
		return nil, fmt.Errorf("cannot use the server's key %s: %w", path, err)
	}
	return key, nil
}

// makeKey writes a new key, unless another process is quicker.
func makeKey(dir, path string) error {
	key := tunnel.NewKey()
	tmp, err := writeTemporary(dir, key.Marshal())
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	// Unlike a rename, a link does not replace what another process has made.
	if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

// remedy ends every error about a key file that cannot be used.
const remedy = "restore it from a copy; or, if there is none, delete it, start again, and give the clients the new key"

func readKey(path string) (*tunnel.Key, error) {
	// Asked before opening, because opening a FIFO waits for its writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w; %s", withoutPath(err), remedy)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("it is not a file but %s; %s", info.Mode(), remedy)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("its mode %04o lets other users at it; if nobody has read it, chmod 600 it", mode)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w; give it to the user that runs this program", withoutPath(err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, stateFileMax+1))
	if err != nil {
		return nil, withoutPath(err)
	}
	switch {
	case len(text) == 0:
		return nil, fmt.Errorf("it is empty; %s", remedy)
	case len(text) > stateFileMax:
		return nil, fmt.Errorf("it has more than %d bytes; %s", stateFileMax, remedy)
	}
	key, err := tunnel.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("it is damaged: %w; %s", err, remedy)
	}
	return key, nil
}

// withoutPath takes the operation and the path from err, which the caller
// names already.
func withoutPath(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// clockMarks keep in a folder in which times clients' first messages were let in.
// They are tunnel.Marks.
type clockMarks struct{ dir string }

// Load returns what Save wrote.
func (m clockMarks) Load() ([]byte, error) {
	path := filepath.Join(m.dir, clockFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, stateFileMax))
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("%s is empty", path)
	}
	return text, err
}

// Save writes text in place of what was there.
func (m clockMarks) Save(text []byte) error {
	if err := writeWhole(m.dir, clockFile, text); err != nil {
		return fmt.Errorf("cannot write %s: %w", filepath.Join(m.dir, clockFile), err)
	}
	return nil
}

// writeBridgeLine keeps the ready bridge line in the folder dir. A file that
// says the same is left alone.
func writeBridgeLine(dir, url, key string) error {
	if url == "" {
		url = "<URL>"
	}
	line := fmt.Appendf(nil, "Bridge turbo <ADDRESS> <FINGERPRINT> url=%s key=%s\n", url, key)
	path := filepath.Join(dir, bridgeLineFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, line) {
		return nil
	}
	if err := writeWhole(dir, bridgeLineFile, line); err != nil {
		return fmt.Errorf("cannot write the bridge line: %w", err)
	}
	return nil
}

// writeWhole writes the file called name in dir, whole or not at all.
func writeWhole(dir, name string, text []byte) error {
	tmp, err := writeTemporary(dir, text)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		os.Remove(tmp)
		return err
	}
	return syncDir(dir)
}

// writeTemporary writes a new file in dir, mode 0600, down to the disk.
func writeTemporary(dir string, text []byte) (path string, err error) {
	f, err := os.CreateTemp(dir, ".turbo_*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// syncDir makes the names in dir survive a crash of the machine.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // folders cannot be opened there
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
