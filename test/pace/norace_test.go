//go:build !race

package pace

// raced tells whether the race detector is in this program.
const raced = false
