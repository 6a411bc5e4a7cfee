package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A Usage is what a program uses of the machine.
type Usage struct {
	CPU         time.Duration // since its start, of all processors
	Descriptors int           // open files
	Resident    int64         // bytes of memory, as the kernel counts them
}

// tick is the kernel's unit of processor time (sysconf(3): _SC_CLK_TCK).
const tick = 10 * time.Millisecond

// Usage is what the program itself uses now, without those that it started.
func (p *Process) Usage() (Usage, error) {
	var u Usage
	dir := fmt.Sprintf("/proc/%d/", p.ID())
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return u, err
	}
	// proc_pid_stat(5): a name in brackets, which may hold anything, and from the
	// third field on numbers: user and system time are the 14th and the 15th.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("%sstat: %q", dir, stat)
	}
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return u, fmt.Errorf("%sstat: %w", dir, err)
		}
		u.CPU += time.Duration(n) * tick
	}
	// proc_pid_statm(5): in pages; the second field is what is resident.
	statm, err := os.ReadFile(dir + "statm")
	if err != nil {
		return u, err
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(statm), &size, &pages); err != nil {
		return u, fmt.Errorf("%sstatm: %w", dir, err)
	}
	u.Resident = pages * int64(os.Getpagesize())
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		return u, err
	}
	u.Descriptors = len(files)
	return u, nil
}
