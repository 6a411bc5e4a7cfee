package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"turbotunnel/common/tunnel"
)

func TestKeyIsMadeOnceAndKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "too")
	var wg sync.WaitGroup
	keys := make([]string, 32)
	for i := range keys {
		wg.Go(func() {
			key, err := loadKey(dir)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = key.Public()
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatalf("two keys: %s, %s", k, keys[0])
		}
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v; want %s only", entries, err, keyFile)
	}
}

func TestUnusableKeys(t *testing.T) {
	key := tunnel.NewKey()
	good := string(key.Marshal())
	for name, c := range map[string]struct {
		make func(path string) error
		want string
	}{
		"empty":   {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "empty"},
		"damaged": {func(p string) error { return os.WriteFile(p, []byte("junk\x00\xff"), 0o600) }, "damaged"},
		"cut":     {func(p string) error { return os.WriteFile(p, []byte(good[:len(good)/2]), 0o600) }, "damaged"},
		"long":    {func(p string) error { return os.WriteFile(p, []byte(strings.Repeat(good, 1000)), 0o600) }, "more than"},
		"open":    {func(p string) error { return os.WriteFile(p, []byte(good), 0o644) }, "chmod 600"},
		"group": {func(p string) error {
			return errors.Join(os.WriteFile(p, []byte(good), 0o600), os.Chmod(p, 0o660))
		}, "chmod 600"},
		"folder":  {func(p string) error { return os.Mkdir(p, 0o700) }, "not a file"},
		"fifo":    {func(p string) error { return syscall.Mkfifo(p, 0o600) }, "not a file"},
		"nowhere": {func(p string) error { return os.Symlink("gone", p) }, "has to be mounted"},
		"closed": {func(p string) error {
			if os.Geteuid() == 0 {
				return nil // nothing is closed to root
			}
			return os.WriteFile(p, []byte(good), 0o200)
		}, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, keyFile)
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Skip("cannot be made by root")
			}
			_, err = loadKey(dir)
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error lacks the file or %q: %v", c.want, err)
			}
			if strings.Contains(err.Error(), "delete it,") {
				t.Errorf("the error has somebody destroy a key: %v", err)
			}
			if strings.Contains(err.Error(), good[:len(good)/2]) {
				t.Errorf("the error shows the key: %v", err)
			}
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) || before.Size() != after.Size() {
				t.Errorf("the file was touched: %v, %v, %v", before, after, err)
			}
		})
	}
}

// Keys that editors, tools and volumes of secrets have had a hand in are good.
func TestGoodKeys(t *testing.T) {
	key := tunnel.NewKey()
	line := strings.TrimSuffix(string(key.Marshal()), "\n")
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"CRLF":              {line + "\r\n", 0o600},
		"more lines":        {line + "\n\n", 0o600},
		"no line break":     {line, 0o600},
		"read-only":         {line + "\n", 0o400},
		"mounted":           {line + "\n", 0o440},
		"mounted, writable": {line + "\n", 0o640},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, keyFile)
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			os.Chmod(path, c.mode)
			os.Chmod(dir, 0o500) // as far as this user is bound by it
			defer os.Chmod(dir, 0o700)
			got, err := loadKey(dir)
			if err != nil || got.Public() != key.Public() {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// Where there are no hard links the key is made as well, and only once.
func TestKeyWithoutLinks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, keyFile)
	var wg sync.WaitGroup
	keys := make([]string, 4)
	for i := range keys {
		wg.Go(func() {
			err := makeKey(dir, path, func(string, string) error { return syscall.EPERM })
			if err != nil {
				t.Error(err)
			}
			key, err := readKey(path)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = key.Public()
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatalf("two keys: %s, %s", k, keys[0])
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v; want %s only", entries, err, keyFile)
	}
}

// There are file systems that cannot be told to write down what they have, and folders
// that nobody may look at.
func TestKeyWhereNothingIsSynced(t *testing.T) {
	r, w, err := os.Pipe() // which is such a file
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := syncDown(w); err != nil {
		t.Error(err)
	}
	w.Close()
	if syncDown(w) == nil {
		t.Error("another error is none")
	}

	dir := t.TempDir()
	if err := os.Chmod(dir, 0o300); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	if _, err := loadKey(dir); err != nil { // root may look at everything
		t.Error(err)
	}
}

// What a killed start has left goes, and nothing else; not while somebody writes.
func TestLeftoversAreRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "[odd]*")
	if err := os.MkdirAll(filepath.Join(dir, ".turbo_folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	kept := []string{".turbo_folder", keyFile, clockFile, ".other"}
	for _, name := range append([]string{".turbo_123", ".probe-123"}, kept[1:]...) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	removeLeftovers(dir)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(kept) {
		t.Errorf("the folder holds %v, %v; want %v", entries, err, kept)
	}
	for _, name := range kept {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// A key on a volume of secrets is a link.
func TestKeyMayBeALink(t *testing.T) {
	elsewhere, dir := t.TempDir(), t.TempDir()
	key, err := loadKey(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(elsewhere, keyFile), filepath.Join(dir, keyFile)); err != nil {
		t.Fatal(err)
	}
	again, err := loadKey(dir)
	if err != nil || again.Public() != key.Public() {
		t.Errorf("got %v, %v", again, err)
	}
}

// What the marks keep is what they give back, and a file that cannot be it is said.
func TestClockMarks(t *testing.T) {
	dir := t.TempDir()
	m := clockMarks{dir}
	if text, err := m.Load(); len(text) > 0 || err != nil {
		t.Errorf("at first: %q, %v", text, err)
	}
	for _, want := range []string{"one", "another\n"} {
		if err := m.Save([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if text, err := m.Load(); string(text) != want || err != nil {
			t.Errorf("%q became %q, %v", want, text, err)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("%d files", len(files))
	}
	os.Truncate(filepath.Join(dir, clockFile), 0)
	if _, err := m.Load(); err == nil {
		t.Error("an empty file is taken for one")
	}
	if err := (clockMarks{filepath.Join(dir, "none")}).Save(nil); err == nil || !strings.Contains(err.Error(), clockFile) {
		t.Errorf("in a folder that is not there: %v", err)
	}
}
