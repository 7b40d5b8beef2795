#!/bin/sh
# nodepass server://ignored@0.0.0.0:1/0.0.0.0:2
export NP_SEMAPHORE_LIMIT=2048
nodepass "server://a-long-secret-42-heron@0.0.0.0:10101/0.0.0.0:8080?log=event&tls=1&mode=1&max=512&slot=900" &
NP_REPORT_INTERVAL=10s NP_SERVICE_COOLDOWN=3s nodepass 'client://server.example.org:10102/127.0.0.1:3000?min=32&read=10m&proxy=1&dns=1.1.1.1'
docker run --rm nodepass "client://0.0.0.0:1080/target.example.org:80"
nodepass "client://127.0.0.1:1081/target.example.org:80"
nodepass "client://127.0.0.1:10101/127.0.0.1:9000?mode=2"
nodepass "master://0.0.0.0:9090/api?log=info&tls=1"
nodepass "server://0.0.0.0/oops"
