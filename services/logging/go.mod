module shop.example/services/logging

go 1.26.0
