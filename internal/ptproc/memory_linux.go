package ptproc

import (
	"math"
	"syscall"
)

// machineMemory is how many bytes the machine has. It is asked of the kernel,
// since systemd can hide /proc/meminfo.
func machineMemory() int64 {
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) != nil {
		return math.MaxInt64
	}
	n := uint64(info.Totalram) * uint64(max(info.Unit, 1))
	if n == 0 || n > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(n)
}
