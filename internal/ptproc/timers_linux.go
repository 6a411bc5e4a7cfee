package ptproc

import (
	"syscall"
	"time"
)

// timerSlack is by how much the kernel may wake a thread late. To it Go's timers are
// whole milliseconds. With 1 ms a program takes a little less, and moves a sixteenth
// less on loopback where it polls.
const timerSlack = 500 * time.Microsecond

// RelaxTimers lets the kernel wake this process late, by timerSlack. Whenever anything
// has woken it the monitor thread of Go's runtime looks each 20 µs whether there is
// something to do, some fifty times and more (golang.org/issue/18236), which was an
// eighth and more of what a program takes that mostly waits for the network. Nothing
// changes where a program is made with cgo, as that thread cannot be reached.
func RelaxTimers() {
	syscall.AllThreadsSyscall(syscall.SYS_PRCTL, syscall.PR_SET_TIMERSLACK, uintptr(timerSlack), 0)
}
