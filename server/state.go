package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/ptproc"
)

const (
	keyFile   = "turbo_key"
	clockFile = "turbo_clock"

	// temporaryFiles are written before they get their names. probeFiles were made
	// by earlier versions, to see whether that is possible.
	temporaryFiles = ".turbo_*"
	probeFiles     = ".probe-*"

	// stateFileMax is more bytes than any file has that is read.
	stateFileMax = 4 << 10
)

// loadKey returns the server's key, which the folder dir holds. On first start
// it makes both. A key that is there and cannot be used is an error, never
// replaced: clients know the server by it. One that can be used is all that the
// folder has to give: nothing needs to be written then.
func loadKey(dir string) (*tunnel.Key, error) {
	path := filepath.Join(dir, keyFile)
	_, err := os.Lstat(path)
	if err != nil {
		if err := ptproc.MakeStateDir(dir); err != nil {
			return nil, err
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(dir, path, os.Link); err != nil {
			return nil, fmt.Errorf("cannot make the server's key %s: %w", path, explainWrite(err))
		}
	}
	key, err := readKey(path)
	if err != nil {
		return nil, fmt.Errorf("cannot use the server's key %s: %w", path, err)
	}
	return key, nil
}

// explainWrite adds to an error of writing into the state folder what to do.
func explainWrite(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; give the folder to the user that runs this program, or, under AppArmor or the like, allow it to write there", err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w; put a key there, or name a folder that can be written by -state-dir", err)
	}
	return err
}

// makeKey writes a new key, unless another process is quicker. link is os.Link.
func makeKey(dir, path string, link func(from, to string) error) error {
	unlock, _ := lockFolder(dir)
	defer unlock()
	tmp, err := writeTemporary(dir, tunnel.NewKey().Marshal())
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	// Unlike a rename, a link does not replace what another process has made.
	err = link(tmp, path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return syncDir(dir)
	}
	// There are file systems without links, and tor's AppArmor profile allows
	// none. Then only the lock keeps other processes away.
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// remedy ends every error about a key file that cannot be used. It keeps what
// is there: somebody may yet mend it.
const remedy = "restore it from a copy; or, if there is none, move it away without deleting it, start again, and give the clients the new key"

func readKey(path string) (*tunnel.Key, error) {
	// Asked before opening, because opening a FIFO waits for its writer.
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist): // but there is a link
		return nil, fmt.Errorf("it is a link, and what it leads to is not there: %w; see whether that has to be mounted first", withoutPath(err))
	case err != nil:
		return nil, fmt.Errorf("%w; let the user that runs this program read the folder", withoutPath(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("it is not a file but %s; %s", info.Mode(), remedy)
	}
	// That its group may read it is how secrets are mounted for programs that do
	// not own them (Kubernetes' fsGroup makes 0440 or 0640).
	if mode := info.Mode().Perm(); mode&0o037 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("its mode %04o lets other users at it; if nobody has read it, chmod 600 it, or mount the secret with mode 0400", mode)
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

// writeWhole writes the file called name in dir, whole or not at all.
func writeWhole(dir, name string, text []byte) error {
	unlock, _ := lockFolder(dir)
	defer unlock()
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

// removeLeftovers takes out of dir what starts have left that were killed while
// they wrote. The lock tells that nobody is writing now. Where it cannot be had,
// and where nothing can be removed, everything stays: it harms nobody.
func removeLeftovers(dir string) {
	unlock, locked := lockFolder(dir)
	defer unlock()
	if !locked {
		return
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		temporary, _ := filepath.Match(temporaryFiles, e.Name())
		probe, _ := filepath.Match(probeFiles, e.Name())
		if (temporary || probe) && e.Type().IsRegular() {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// writeTemporary writes a new file in dir, mode 0600, down to the disk.
func writeTemporary(dir string, text []byte) (path string, err error) {
	f, err := os.CreateTemp(dir, temporaryFiles)
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err == nil {
		err = syncDown(f)
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
	if errors.Is(err, fs.ErrPermission) {
		return nil // files may be written there, and nobody may look at the folder
	}
	if err != nil {
		return err
	}
	defer d.Close()
	return syncDown(d)
}

// syncDown has what was written to f reach the disk, where there is such a thing: some
// file systems do not know it for folders, or at all.
func syncDown(f *os.File) error {
	err := f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}
