//go:build unix && !solaris && !aix

package main

import (
	"os"
	"syscall"
	"time"
)

const (
	// lockTime is how long another process may take to write a file of some
	// hundred bytes. After that it is stopped, or its disk is.
	lockTime = 5 * time.Second

	// lockInterval is how often it is asked whether it has. A call that waits
	// could not be ended.
	lockInterval = 10 * time.Millisecond
)

// lockFolder keeps other processes of this program from writing in dir until
// unlock is called. locked is false where that cannot be had: the folder is not
// there, its file system has no locks, or somebody does not give it back.
func lockFolder(dir string) (unlock func(), locked bool) {
	f, err := os.Open(dir)
	if err != nil {
		return func() {}, false
	}
	for deadline := time.Now().Add(lockTime); ; time.Sleep(lockInterval) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, true
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR || time.Now().After(deadline) {
			f.Close()
			return func() {}, false
		}
	}
}
