//go:build unix

package ptproc

import "syscall"

// DescriptorLimit is how many descriptors the process may have; 0 is no limit. Go has raised
// the soft limit to the hard one before main (package os).
func DescriptorLimit() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return uint64(limit.Cur) // signed on some systems, where infinity is the largest
}
