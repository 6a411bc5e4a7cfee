// Package faults tests the table of faults in doc/reliability.md: what becomes of
// streams while something between client and server misbehaves. Both programs are
// real, and each engine has its own pair of them; every fault stands in a middlebox
// of its own, so that a session never knows another one's.
//
// Some hundred sessions that all retry cost the race detector minutes, and look for
// no races that other tests miss: the tests are left out there.
package faults
