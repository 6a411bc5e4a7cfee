module turbotunnel

go 1.26
