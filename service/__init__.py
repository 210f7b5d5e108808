"""The service, room by room. Each module's first line says what it is for.

The way of a picture, in an HTTP worker (``worker``):
    connection, tls                                     the socket
    app; access, rate, buckets, patience, negotiation   what every request goes through
    accounting, problems, errors                        what becomes of it, in one counted outcome
    api, embeddings, dialects                           the routes of one picture
    batch_api, batch_request                            the one of many, and such a request on its way
    uploads, bodies                                     a body, and the picture in it
    bundles; archives, tars, zips, spool                one with many, and the pictures in it
    images, intricacy; coded, jpeg, avif, av1           untrusted bytes to an RGB crop
    decoders, threads                                   beside the event loop
    inference, link, session                            to the engine, and back
    health, exposition, page, admin, contract           the other routes
Between the two:
    wire, outputs                                       slots of shared memory, and messages about them
In a model's engine (``engine_process``):
    workers, engine                                     who hands in pictures and waits for answers
    batching, line, costs                               which of them run next: pure, without a clock
    scoring, device, pipeline                           runs them
Around them:
    supervisor, process, lifeline, engine_host          starts, watches, replaces and drains them
    control, relapses, priority, cgroups                what these tell each other and the system
    settings, logs, metrics, multiprocess, tracing      for every process
On the command line (``__main__``):
    bench, doctor, plan, predict                        `volo ...`
    options, terminal, apidoc, assets                   what these are made of, and the page
"""
