package ptproc

import (
	"os"
	"sync"
)

// A file is a log file that can be opened again by its name, for programs that
// rename it when it has grown. Safe for concurrent use.
type file struct {
	path string

	mu   sync.Mutex
	file *os.File // guarded by mu
}

// openFile appends to the file called path, and creates it with mode 0600.
func openFile(path string) (*file, error) {
	f := &file{path: path}
	if err := f.reopen(); err != nil {
		return nil, err
	}
	return f, nil
}

// reopen goes on in what is called path now. If that fails nothing changes.
func (f *file) reopen() error {
	fresh, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file != nil {
		f.file.Close()
	}
	f.file = fresh
	return nil
}

func (f *file) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file.Write(p)
}
