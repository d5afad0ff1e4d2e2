module sign-go-peer

go 1.26.0
