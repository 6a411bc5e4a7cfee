//go:build race

package pace

// raced tells whether the race detector is in this program, which makes
// everything eight times slower.
const raced = true
